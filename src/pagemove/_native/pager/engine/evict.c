/* Blocks leave: moved out first, which is atomic, and only then looked at. */
#include <errno.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/interruption.h"
#include "pager/mechanisms/trace.h"

void pg_note_dropped(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];

    if (block->flags & PG_UNSYNCED)
        region->unsynced_evicted = 1;
    block->flags &= (uint8_t)~PG_UNSYNCED;
}

void pg_forget_evicted(struct pg_region *region, pg_entry entry)
{
    pg_remember(&region->policy, entry);
    pg_note_dropped(region, entry);
    region->counters.evicted++;
    pg_trace_moment(region->base, PG_TRACE_EVICT,
                    region->blocks.at[entry].number * region->block_size, region->block_size, 0);
    pg_become(&region->blocks, entry, PG_ABSENT);
}

/* A block has been moved out, or is to be now. 0, or -errno: it is resident as before. */
static int take_out(struct pg_region *region, struct pg_out *out)
{
    uint64_t address = pg_block_address(region, out->number);
    int error = out->begun < region->block_size ? pg_move_rest(region, out) : 0;

    if (error) {
        /* A page is pinned: what has left comes back. It may have been written in between. */
        pg_put_back(region, out);
        return error;
    }
    region->counters.remapped += !region->uffd.moves;
    out->whole = pg_is_whole(region, &out->pages);
    /* What the user has discarded, and could not be read again, is poisoned no more. */
    if (!out->whole)
        pg_discard(&region->uffd, address, region->block_size);
    region->blocks.at[out->entry].slot = out->slot;
    pg_become(&region->blocks, out->entry, PG_STAGED);
    return 0;
}

/* A slot for one that leaves. 0 or -PG_NOT_NOW. */
static int begin_out(struct pg_region *region, pg_entry entry, struct pg_out *out)
{
    *out = (struct pg_out){.entry = entry,
                           .number = region->blocks.at[entry].number,
                           .slot = region->staying ? PG_NO_SLOT : pg_slot_to_move_into(region)};
    if (out->slot == PG_NO_SLOT)
        return -PG_NOT_NOW;
    pg_unlist(&region->blocks, entry);
    return 0;
}

int pg_take_out(struct pg_region *region, pg_entry entry, struct pg_out *out)
{
    int error = begin_out(region, entry, out);

    return error ? error : take_out(region, out);
}

void pg_begin_writing(struct pg_region *region, struct pg_out *out, int offer)
{
    out->offered = offer && out->whole;
    out->again = region->blocks.at[out->entry].in_place;
    pg_become(&region->blocks, out->entry, PG_WRITING);
    if (!out->whole)
        region->blocks.at[out->entry].flags |= PG_PARTIAL;
}

void pg_settle(struct pg_region *region, const struct pg_out *out)
{
    int sequential = region->blocks.at[out->entry].flags & PG_SEQUENCE;

    if (!out->whole) {
        /* The user has discarded a part, and the store has the rest. */
        pg_forget_evicted(region, out->entry);
        pg_give_up(&region->frames, out->slot);
    } else if (sequential) {
        pg_forget_evicted(region, out->entry);
        pg_give_full(&region->frames, out->slot);
    } else {
        pg_push_tail(&region->blocks, PG_STANDBY, out->entry);
    }
    pg_frame_available(region);
}

/* Drops the lock. */
static void write_out(struct pg_region *region, struct pg_out *outs, size_t count)
{
    int full = 0;

    pg_write_evicted(region, outs, count);
    for (size_t i = 0; i < count; i++)
        full |= outs[i].error == -ENOSPC;
    if (full)
        pg_make_store_room(region);
}

/* What the kernel has refused to move is not to be in the way of what can leave. */
static void put_aside(struct pg_region *region, pg_entry entry)
{
    enum pg_list list = region->blocks.at[entry].list;

    if (list != PG_UNLISTED && list != PG_IN_PLACE)
        pg_push_tail(&region->blocks, PG_STUCK, entry);
}

/* Who leaves next; of what was put aside `*stuck` more, where there is nothing else. */
static pg_entry next_to_leave(struct pg_region *region, int write, int only, uint32_t *stuck)
{
    pg_entry entry = pg_victim(region, write, only);

    if (entry != PG_NONE || !*stuck)
        return entry;
    --*stuck;
    return pg_victim_aside(region, write);
}

/* Those that leave next, each with a slot. How many. */
static size_t choose_some(struct pg_region *region, struct pg_out *outs, size_t most, int write,
                          int only, uint32_t *stuck)
{
    size_t n = 0;

    for (; n < most; n++) {
        pg_entry entry = next_to_leave(region, write, only && !n, stuck);
        if (entry == PG_NONE || begin_out(region, entry, &outs[n]))
            break;
    }
    return n;
}

/* Move some blocks out, so that slots become full, blocks go on standby, or stay in place and leave
 * their frames to others. Returns how many have left. Drops the lock. */
static unsigned evict_some(struct pg_region *region, unsigned most, int write)
{
    struct pg_out outs[PG_BATCH], changed[PG_BATCH];
    unsigned left = 0, refused = 0;
    uint32_t stuck = region->blocks.length[PG_STUCK];
    size_t count, to_write = 0;

    pg_look_at_merging(region);
    /* One of those put aside may be able to leave by now. */
    if (stuck) {
        stuck--;
        pg_enlist(region, region->blocks.head[PG_STUCK], 0);
    }
    while (left < most && refused < 2 * PG_BATCH) {
        count = choose_some(region, outs, most - left, write, !left, &stuck);
        if (!count)
            break;
        pg_move_together(region, outs, count);
        for (struct pg_out *out = outs; out < outs + count; out++) {
            if (take_out(region, out)) {
                put_aside(region, out->entry);
                refused++;
                continue;
            }
            left++;
            if (region->blocks.at[out->entry].flags & PG_DIRTY) {
                pg_begin_writing(region, out, 1);
                changed[to_write++] = *out;
            } else {
                pg_settle(region, out);
            }
        }
    }
    /* Merged, and not by what pg_look_at_merging knows of? */
    if (refused && !left)
        pg_unmerge(region);
    pg_note_left(region, left);
    if (to_write)
        write_out(region, changed, to_write);
    return left;
}

int pg_write_itself(struct pg_region *region, pg_entry entry)
{
    struct pg_out out;
    int error = pg_take_out(region, entry, &out);

    if (error)
        return error;
    pg_begin_writing(region, &out, 0);
    write_out(region, &out, 1);
    return out.error;
}

unsigned pg_batch(const struct pg_region *region)
{
    uint64_t blocks = (UINT64_C(1) << 20) / region->block_size;

    blocks = blocks < pg_frames_shared(&region->frames) / 8 ? blocks
                                                            : pg_frames_shared(&region->frames) / 8;
    return blocks < 1 ? 1 : blocks < PG_BATCH ? (unsigned)blocks : PG_BATCH;
}

uint16_t pg_reclaim(struct pg_region *region, int write)
{
    struct pg_blocks *blocks = &region->blocks;
    uint16_t slot;
    pg_entry entry;

    /* Before there is nothing left that could leave without being written. */
    if (!write && blocks->dirty && blocks->length[PG_STANDBY] <= region->policy.standby_wanted / 2)
        pg_want_writes(region);
    if (blocks->length[PG_STANDBY] < region->policy.standby_wanted) {
        evict_some(region, pg_batch(region), write);
        slot = pg_take_full(&region->frames);
        if (slot == PG_NO_SLOT)
            slot = pg_take_fresh(&region->frames);
        if (slot != PG_NO_SLOT)
            return slot;
    }
    entry = blocks->head[PG_STANDBY];
    if (entry == PG_NONE)
        return PG_NO_SLOT;
    slot = blocks->at[entry].slot;
    pg_forget_evicted(region, entry);
    return slot;
}

unsigned pg_write_out(struct pg_region *region)
{
    return evict_some(region, pg_batch(region), 1);
}

/* Take one block away, and its memory too. 0; 1, it was written, and whoever has touched it since
 * has it back; or -errno. Drops the lock. */
static int evict_one(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];
    struct pg_out out;
    int error;

    if (block->state == PG_ERROR && pg_is_late(region, block->number))
        return 0; /* it is cleared when the helper has answered */
    if (block->state == PG_ERROR) {
        /* This takes the poison away: the next touch reads anew. */
        pg_discard(&region->uffd, pg_block_address(region, block->number), region->block_size);
        pg_become(&region->blocks, entry, PG_ABSENT);
        return 0;
    }
    if (block->state == PG_RESIDENT) {
        pg_look_at_merging(region);
        error = pg_take_out(region, entry, &out);
        if (error)
            return error == -EINVAL ? 0 : error; /* it is locked in memory (mlock), and stays */
        if (block->flags & PG_DIRTY) {
            pg_begin_writing(region, &out, 0);
            write_out(region, &out, 1);
            return out.error ? out.error : !out.stays;
        }
        if (!out.whole) {
            pg_settle(region, &out);
            return 0;
        }
    }
    pg_unlist(&region->blocks, entry);
    {
        uint16_t slot = block->slot;
        pg_forget_evicted(region, entry);
        pg_slot_back(region, slot, 0);
    }
    return 0;
}

/* Of several blocks that cannot be written the first is noted: mostly all have one reason. */
static int note_unwritten(struct pg_region *region, uint32_t number, int error, uint64_t tries,
                          int *noted)
{
    if (!*noted) {
        pg_note_failure(region, PG_OP_WRITE, number, -error, tries);
        region->counters.errors++;
        *noted = 1;
    }
    return error;
}

/* Drops the lock. */
static int evict_number(struct pg_region *region, uint32_t number, uint64_t deadline, int *noted)
{
    uint64_t failed = 0, patience = pg_overdue(region, pg_overdue(region, pg_now()));
    unsigned touched = 0;

    for (;;) {
        pg_entry entry = pg_find(&region->blocks, number);
        int error;

        /* What is pinned stays; of one that cannot be read the poison is taken away all the same.
         */
        if (entry == PG_NONE ||
            (pg_is_pinned(region, number) && region->blocks.at[entry].state != PG_ERROR))
            return 0;
        if (pg_is_called_off())
            return -PG_INTERRUPTED;
        if (pg_is_busy(&region->blocks.at[entry])) {
            if (region->blocks.at[entry].state != PG_FILLING)
                pthread_cond_wait(&region->changed, &region->lock);
            else if (pg_wait_changed(region, patience))
                return -ENOMEM; /* it is in memory, but cannot be mapped */
            continue;
        }
        error = evict_one(region, entry);
        /* A block that others touch all the time need not be taken away more than once. */
        if (!error || (error > 0 && ++touched == 3))
            return 0;
        if (error > 0)
            continue;
        if (pg_now() >= deadline)
            return note_unwritten(region, number, error, failed + 1, noted);
        pg_pause(region, pg_backoff(++failed));
    }
}

int pg_do_evict(struct pg_region *region, uint64_t offset, uint64_t length)
{
    uint64_t first = offset / region->block_size;
    uint64_t end = (offset + length + region->block_size - 1) / region->block_size;
    uint64_t deadline = pg_now() + region->timeout;
    int error = 0, failed, noted = 0;

    if (!length)
        return 0;
    pthread_mutex_lock(&region->lock);
    for (uint64_t number = first; number < end && !pg_is_called_off(); number++) {
        /* Of a large range only the blocks that there are. */
        if (end - number > region->blocks.used)
            break;
        failed = evict_number(region, (uint32_t)number, deadline, &noted);
        error = error ? error : failed;
        first = number + 1;
    }
    for (pg_entry entry = 0; first < end && entry < region->blocks.used && !pg_is_called_off();
         entry++) {
        const struct pg_block *block = &region->blocks.at[entry];
        if (block->state == PG_ABSENT || block->number < first || block->number >= end)
            continue;
        failed = evict_number(region, block->number, deadline, &noted);
        error = error ? error : failed;
    }
    /* What was kept for reuse is part of what the caller wants back. */
    for (uint16_t slot; (slot = pg_take_full(&region->frames)) != PG_NO_SLOT;)
        pg_give_up(&region->frames, slot);
    pthread_mutex_unlock(&region->lock);
    return error;
}

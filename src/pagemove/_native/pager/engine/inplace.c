/* Blocks that do not shrink stay where they are.
 *
 * Where the store is compressed memory in this process, what does not shrink would be copied there,
 * and back at its next touch, and take as much in both places. So it leaves as any other: it is
 * moved out and tried. Then it comes back to its place, the store counts it from then on, and its
 * frame is none of the limit's: another block may have that. Its touches are seen no more, nor is
 * it ever chosen to leave.
 *
 * What the program has overwritten meanwhile may shrink. So one of them is tried again after some
 * evictions, and some where the store is full, in turn: moved out and offered as before. What the
 * store has then leaves memory at once, for there may be no frame for it. */
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/compressed.h"

enum {
    EVICTIONS = 16,      /* until one is tried again: a sixteenth more work at most */
    MOST_TRIES = 8,      /* at once, where those before have shrunk */
    TRIES_WHEN_FULL = 32 /* each time that something has no room */
};

void pg_settle_offers(struct pg_region *region, struct pg_out *outs, size_t count)
{
    for (struct pg_out *out = outs; out < outs + count; out++) {
        struct pg_block *block = &region->blocks.at[out->entry];

        out->stays = out->error == -PG_STAYS;
        if (out->stays)
            out->error = 0;
        /* Of one that was copied its newest contents are mapped, and dirty as before. Of one in
         * place some pages may have been stored before others had no room. */
        if (block->flags & PG_COPY_IN_FLIGHT || !(out->stays || (out->again && out->error)))
            continue;
        if (out->again) {
            pg_store_stay(&region->store, out->number, region->block_size, 1);
            continue;
        }
        out->error = pg_store_stay(&region->store, out->number, region->block_size, 0);
        out->stays = !out->error;
        if (out->error)
            continue;
        if (region->spilled)
            pg_note_stored(region, out->number);
        pg_set_in_place(&region->blocks, out->entry, 1);
        pg_count_frame(&region->frames, -1);
    }
}

void pg_leave_place(struct pg_region *region, const struct pg_out *out)
{
    pg_set_in_place(&region->blocks, out->entry, 0);
    pg_forget_evicted(region, out->entry);
    pg_empty_slot(&region->frames, out->slot);
}

void pg_forget_place(struct pg_region *region, pg_entry entry)
{
    pg_compressed_discard(region->store.compressed, region->blocks.at[entry].number, 1);
    pg_set_in_place(&region->blocks, entry, 0);
}

/* Offer the next ones again. Returns how many have shrunk. Drops the lock. */
static unsigned try_some(struct pg_region *region, unsigned most)
{
    struct pg_out outs[PG_BATCH], *out = outs;
    uint32_t left = region->blocks.length[PG_IN_PLACE];
    unsigned shrunk = 0;
    int error = 0;

    pg_look_at_merging(region);
    for (; left && out < outs + most && error != -PG_NOT_NOW; left--) {
        error = pg_take_out(region, region->blocks.head[PG_IN_PLACE], out);
        if (!error)
            pg_begin_writing(region, out++, 1);
    }
    if (out > outs) {
        region->trying++;
        pg_write_evicted(region, outs, (size_t)(out - outs));
        region->trying--;
    }
    for (const struct pg_out *each = outs; each < out; each++)
        shrunk += !each->error && !each->stays;
    pthread_cond_broadcast(&region->changed);
    return shrunk;
}

void pg_note_left(struct pg_region *region, unsigned left)
{
    region->left += left;
    if (region->left >= EVICTIONS && !region->want_tries)
        pg_want_tries(region, 1);
}

void pg_want_tries(struct pg_region *region, uint32_t count)
{
    count = count < region->blocks.in_place ? count : region->blocks.in_place;
    if (count <= region->want_tries)
        return;
    region->want_tries = count;
    pg_call_worker(region);
}

void pg_try_again(struct pg_region *region)
{
    uint32_t most = pg_batch(region);
    uint32_t tries = region->want_tries < most ? region->want_tries : most;

    region->left = 0;
    region->want_tries -= tries;
    /* The program writes to several of them, mostly. */
    if (try_some(region, tries))
        pg_want_tries(region, 2 * tries < MOST_TRIES ? 2 * tries : MOST_TRIES);
}

void pg_make_store_room(struct pg_region *region)
{
    unsigned most = pg_batch(region);

    for (unsigned tried = 0; tried < TRIES_WHEN_FULL; tried += most)
        if (try_some(region, most))
            break;
}

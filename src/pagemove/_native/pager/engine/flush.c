/* Make durable what was stored so far, while threads go on storing. */
#include <errno.h>

#include "pager/engine/arriving.h"
#include "pager/engine/leaving.h"
#include "pager/engine/pin.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/copies.h"
#include "pager/mechanisms/interruption.h"
#include "pager/mechanisms/trace.h"

/* A copy of the block's present contents in an outgoing slot; the block itself is clean from
 * here on, and mapped again: whoever waited for it meanwhile did so for microseconds. 0; 1, there
 * is nothing to copy any more; or -errno, -PG_NOT_NOW: there is no room. Drops the lock. */
static int snapshot(struct pg_region *region, pg_entry entry, struct pg_out *out)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint64_t address = pg_block_address(region, block->number), page = region->uffd.page_size;
    unsigned pages = (unsigned)(region->block_size / page), first, end;
    int moved, error = region->jobs.starving ? -PG_NOT_NOW : pg_make_room(region, 1);

    if (error)
        return error;
    *out = (struct pg_out){.entry = entry, .number = block->number, .whole = 1};
    if (block->state != PG_RESIDENT || !(block->flags & PG_DIRTY))
        return 1;
    if (pg_is_pinned(region, block->number))
        return pg_copy_pinned(region, out);
    out->slot = pg_slot_to_move_into(region);
    if (out->slot == PG_NO_SLOT)
        return -PG_NOT_NOW;
    error = pg_move_out(&region->uffd, pg_slot_address(&region->frames, out->slot), address,
                        region->block_size, &out->pages);
    if (error == -EINVAL)
        return pg_copy_in_place(region, entry, out);
    moved = !error;
    for (first = 0; first < pages && !error; first = end) {
        int there = pg_has(&out->pages, first);
        for (end = first + 1; end < pages && pg_has(&out->pages, end) == there; end++)
            ;
        out->whole &= there;
        if (there)
            error = pg_copy_in(&region->uffd, address + first * page,
                               pg_slot_address(&region->frames, out->slot) + first * page,
                               (end - first) * page, 1);
    }
    if (error) {
        /* What was copied already goes again: it is protected, so nobody has stored into it. */
        if (moved)
            pg_discard(&region->uffd, address, region->block_size);
        pg_unlist(&region->blocks, entry);
        pg_put_back(region, out);
        return error;
    }
    pg_count_frame(&region->frames, 1);
    pg_set_dirty(&region->blocks, entry, 0);
    return 0;
}

static void settle(struct pg_region *region, const struct pg_out *out)
{
    struct pg_block *block = &region->blocks.at[out->entry];

    block->flags &= (uint8_t)~PG_COPY_IN_FLIGHT;
    if (out->error)
        pg_set_dirty(&region->blocks, out->entry, 1);
    else
        block->flags |= PG_UNSYNCED;
    pg_slot_back(region, out->slot, out->whole);
}

/* Blocks that have been copied, and what came of those before. */
struct sweep {
    struct pg_out outs[PG_BATCH];
    size_t count;
    unsigned written;
    int error;
    uint32_t failed; /* number of a block that could not be written */
};

static void note_error(struct sweep *sweep, int error, uint32_t number)
{
    if (!error)
        return;
    sweep->error = error;
    sweep->failed = number;
}

/* Write what has been copied. Drops the lock. */
static void write_copies(struct pg_region *region, struct sweep *sweep)
{
    unsigned epoch;

    if (!sweep->count)
        return;
    epoch = pg_begin_write(region);
    pthread_mutex_unlock(&region->lock);
    pg_write_back(region, sweep->outs, sweep->count);
    pthread_mutex_lock(&region->lock);
    pg_end_write(region, epoch, sweep->outs, sweep->count);
    for (size_t i = 0; i < sweep->count; i++) {
        note_error(sweep, sweep->outs[i].error, sweep->outs[i].number);
        sweep->written += !sweep->outs[i].error;
        settle(region, &sweep->outs[i]);
    }
    sweep->count = 0;
}

/* Copy one dirty block, writing others first if that takes room. Drops the lock. */
static void add_copy(struct pg_region *region, struct sweep *sweep, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint32_t number = block->number;
    int error;

    block->flags |= PG_COPY_IN_FLIGHT;
    error = snapshot(region, entry, &sweep->outs[sweep->count]);
    if (error == -PG_NOT_NOW && sweep->count) {
        write_copies(region, sweep);
        error = snapshot(region, entry, &sweep->outs[0]);
    }
    if (!error) {
        sweep->count++;
        return;
    }
    block->flags &= (uint8_t)~PG_COPY_IN_FLIGHT;
    pthread_cond_broadcast(&region->changed);
    /* Those who wait for a frame come first, and there may be one of them at any time: without a
     * copy it takes none, though whoever touches the block meanwhile waits for the store. */
    if (error == -PG_NOT_NOW && block->state == PG_RESIDENT && block->flags & PG_DIRTY &&
        !pg_is_pinned(region, number)) {
        error = pg_write_itself(region, entry);
        sweep->written += !error;
    }
    if (error < 0)
        note_error(sweep, error, number);
}

/* Whether to end between two blocks. What a region that is lost has not saved, who waits for the
 * flush to end does in another way (lost.c). */
static int is_to_end(const struct pg_region *region)
{
    return pg_is_called_off() || pg_is_lost(region);
}

/* Wait for others to be done with a block. -ENOMEM: it is in memory, but cannot be mapped.
 * -PG_INTERRUPTED: it is to end. Drops the lock. */
static int wait_for_block(struct pg_region *region, const struct pg_block *block)
{
    uint64_t patience = pg_overdue(region, pg_overdue(region, pg_now()));

    while (pg_is_held(block)) {
        if (is_to_end(region))
            return -PG_INTERRUPTED;
        if (block->state != PG_FILLING)
            pthread_cond_wait(&region->changed, &region->lock);
        else if (pg_wait_changed(region, patience))
            return -ENOMEM;
    }
    return 0;
}

/* Once over all dirty blocks. 0, or the last error of those that stay dirty. Drops the lock. */
static int write_dirty(struct pg_region *region, uint32_t *failed)
{
    struct sweep sweep = {.count = 0};

    if (region->blocks.used && is_to_end(region))
        return -PG_INTERRUPTED;
    for (pg_entry entry = 0; entry < region->blocks.used; entry++) {
        struct pg_block *block = &region->blocks.at[entry];
        int error;
        /* Nothing to do for nearly all, while writers may be waiting (given.py). */
        if (!(block->flags & (PG_DIRTY | PG_COPY_IN_FLIGHT)))
            continue;
        error = is_to_end(region) ? -PG_INTERRUPTED : wait_for_block(region, block);
        if (error) {
            note_error(&sweep, error, block->number);
            break;
        }
        if (block->state != PG_RESIDENT || !pg_is_to_be_written(block))
            continue;
        add_copy(region, &sweep, entry);
        if (sweep.count == PG_BATCH)
            write_copies(region, &sweep);
    }
    write_copies(region, &sweep);
    *failed = sweep.failed;
    return sweep.error;
}

struct pg_written pg_write_some(struct pg_region *region, pg_entry first, pg_entry end,
                                unsigned most)
{
    struct sweep sweep = {.count = 0};
    pg_entry entry = first;

    for (unsigned tried = 0; entry < end && tried < most; entry++) {
        const struct pg_block *block = &region->blocks.at[entry];
        if (block->state != PG_RESIDENT || !pg_is_to_be_written(block) || pg_is_held(block))
            continue;
        add_copy(region, &sweep, entry);
        tried++;
    }
    write_copies(region, &sweep);
    return (struct pg_written){entry, sweep.written, sweep.error != 0, sweep.failed};
}

/* Wait for write-backs that have begun before. Drops the lock. */
static void wait_for_evictions(struct pg_region *region)
{
    unsigned before = region->epoch++ & 1;

    while (region->writing[before])
        pthread_cond_wait(&region->changed, &region->lock);
}

static int write_all(struct pg_region *region)
{
    uint64_t deadline = pg_now() + region->timeout, tries = 0;
    uint32_t number = 0;
    int error;

    for (;;) {
        /* A block that was on its way out at its turn, and could not be written, is back. */
        uint64_t failures = region->write_failures;
        /* The user wants it written now. */
        region->write_pause = 0;
        pg_look_at_merging(region);
        error = write_dirty(region, &number);
        wait_for_evictions(region);
        if (error && is_to_end(region))
            return -PG_INTERRUPTED; /* what is not written is dirty as before */
        if (!error && region->write_failures == failures)
            return 0;
        /* -PG_NOT_NOW: no slot, because those that have one cannot be written. */
        if (!error || error == -PG_NOT_NOW)
            error = region->write_error ? -region->write_error : error ? -ENOMEM : -EIO;
        tries++;
        if (pg_now() >= deadline)
            break;
        pg_pause(region, pg_backoff(tries));
    }
    pg_note_failure(region, PG_OP_WRITE, number, -error, tries);
    region->counters.errors++;
    return error;
}

/* A block that is in a slot only, and not known to be durable any more, comes back to be written
 * again. */
static void bring_back(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];
    struct pg_out out = {.entry = entry, .number = block->number, .slot = block->slot};

    pg_unlist(&region->blocks, entry);
    pg_put_back(region, &out);
}

/* After a sync that failed nobody knows what has arrived: write again what still can be, wherever
 * it is. What is being written, and what is being filled in, is dirty as well. */
static void forget_written(struct pg_region *region)
{
    region->sync_failures++;
    for (pg_entry entry = 0; entry < region->blocks.used; entry++) {
        struct pg_block *block = &region->blocks.at[entry];
        if (block->state == PG_ABSENT || !(block->flags & PG_UNSYNCED))
            continue;
        if (block->state == PG_STAGED)
            bring_back(region, entry);
        else
            pg_set_dirty(&region->blocks, entry, 1);
    }
    region->sync_lost |= region->unsynced_evicted;
}

static void note_synced(struct pg_region *region)
{
    for (pg_entry entry = 0; entry < region->blocks.used; entry++)
        region->blocks.at[entry].flags &= (uint8_t)~PG_UNSYNCED;
}

/* Have the store make durable what was written. Drops the lock. */
static int sync_store(struct pg_region *region)
{
    uint64_t deadline = pg_now() + region->timeout, tries = 0;
    int error;

    for (;;) {
        uint64_t began = pg_trace_begin();
        pthread_mutex_unlock(&region->lock);
        error = pg_store_sync(&region->store);
        pg_trace_since(region->base, PG_TRACE_SYNC, 0, region->nbytes, began, error);
        pthread_mutex_lock(&region->lock);
        /* Nothing became of it if it was not asked. Else that it succeeds the next time means
         * nothing: after fdatasync has failed once, what it could not write may be gone. */
        if (!error || pg_now() >= deadline || is_to_end(region) ||
            !(region->flush_retryable || error == -PG_NOT_ASKED))
            return error;
        pg_pause(region, pg_backoff(++tries));
    }
}

int pg_sync_all(struct pg_region *region)
{
    int error, evicted = region->unsynced_evicted;

    if (!region->unsynced)
        return 0;
    region->unsynced = region->unsynced_evicted = 0;
    region->syncing = 1;
    error = sync_store(region);
    region->syncing = 0;
    if (!error) {
        note_synced(region);
        return 0;
    }
    region->unsynced = 1;
    region->unsynced_evicted |= evicted;
    /* Not answered yet: if it fails in the end, the next sync says so. */
    if (!region->flush_retryable && error != -PG_NOT_ASKED && error != -PG_NO_ANSWER)
        forget_written(region);
    return error;
}

static void note_sync_failure(struct pg_region *region, int error, uint64_t tries)
{
    pg_note_failure(region, PG_OP_SYNC, 0, -error, tries);
    region->counters.errors++;
}

/* Write what is dirty and have the store make it durable. What that says of a file is final for
 * this call; of a store in a helper, which may have lost its server for a second, what it has not
 * made durable is written and asked for again. Drops the lock. */
static int save(struct pg_region *region)
{
    uint64_t deadline = pg_now() + region->timeout, tries = 0;
    int error;

    for (;;) {
        error = write_all(region);
        if (error)
            return error;
        error = pg_sync_all(region);
        tries++;
        if (!error || region->sync_lost || !pg_has_helper(region) || pg_now() >= deadline ||
            is_to_end(region))
            break;
        pg_pause(region, pg_backoff(tries));
    }
    /* Blocks that had left memory were not made durable, and never will be: no later flush may
     * return as if they were. */
    if (error)
        note_sync_failure(region, error, tries);
    if (region->sync_lost)
        note_sync_failure(region, error = -PG_NOT_DURABLE, 1);
    return error;
}

int pg_begin_flush(struct pg_region *region)
{
    while (region->flushing) {
        if (pg_is_called_off())
            return -PG_INTERRUPTED;
        pthread_cond_wait(&region->changed, &region->lock);
    }
    region->flushing = 1;
    return 0;
}

void pg_end_flush(struct pg_region *region)
{
    region->flushing = 0;
    pthread_cond_broadcast(&region->changed);
}

int pg_do_flush(struct pg_region *region)
{
    uint64_t began = pg_trace_begin();
    int error;

    if (!pg_writable(region))
        return 0;
    pthread_mutex_lock(&region->lock);
    error = pg_begin_flush(region);
    if (!error) {
        if (region->mode == PG_WRITE)
            error = save(region);
        else
            wait_for_evictions(region);
        pg_end_flush(region);
    }
    pthread_mutex_unlock(&region->lock);
    pg_trace_since(region->base, PG_TRACE_FLUSH, 0, region->nbytes, began, error);
    return error;
}

/* What the program asks to be read ahead. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/engine/arriving.h"
#include "pager/engine/asked.h"
#include "pager/engine/lease.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/interruption.h"

int pg_insist(struct pg_region *region, uint32_t number)
{
    pg_entry entry = pg_find(&region->blocks, number);
    struct pg_job job = {.number = number, .slot = PG_NO_SLOT, .began = pg_now()};
    uint64_t until;

    if (entry == PG_NONE) {
        job.entry = entry = pg_begin(&region->blocks, number);
        if (entry == PG_NONE)
            return -ENOMEM;
        pg_do_job(region, job);
    }
    until = pg_overdue(region, pg_overdue(region, pg_now()));
    for (;;) {
        entry = pg_find(&region->blocks, number);
        if (entry == PG_NONE || region->blocks.at[entry].state != PG_FILLING)
            return entry != PG_NONE && region->blocks.at[entry].state == PG_ERROR ? -EIO : 0;
        if (pg_is_called_off())
            return -PG_INTERRUPTED;
        /* One that is in memory is not given up, but there may be none to map it. */
        if (pg_wait_changed(region, until))
            return -ENOMEM;
    }
}

/* Wait for what was asked to be read ahead. Drops the lock. */
static void await_request(struct pg_region *region, struct pg_awaited *awaited)
{
    while (awaited->pending) {
        if (pg_is_called_off() && !awaited->called_off) {
            awaited->called_off = 1;
            pg_call_worker(region);
        }
        pthread_cond_wait(&region->changed, &region->lock);
    }
}

static int read_range(struct pg_region *region, uint64_t first, uint64_t end, int wait)
{
    struct pg_request request = {
        .next = (int64_t)first, .stride = 1, .count = (uint32_t)(end - first), .marker = -1};
    struct pg_awaited awaited = {.pending = 1};
    int error = 0;

    pthread_mutex_lock(&region->lock);
    request.awaited = wait ? &awaited : NULL;
    /* When the region is closed, one that is put after the last look is never read. */
    if (!pg_is_called_off() && !pg_put_request(region, request) && wait)
        await_request(region, &awaited);
    /* With a store that fails each block would take all patience: the first ends it. */
    for (uint64_t number = first; wait && !error && number < end && !pg_is_called_off(); number++)
        error = pg_insist(region, (uint32_t)number);
    pthread_mutex_unlock(&region->lock);
    return error;
}

int pg_read_range(struct pg_region *region, uint64_t first, uint64_t end)
{
    return read_range(region, first, end, 1);
}

uint64_t pg_most_at_once(struct pg_region *region)
{
    uint64_t frames = pg_lease_reach(region);

    frames -= region->frames.pinned < frames ? region->frames.pinned : frames;
    return frames - frames / 4;
}

int pg_do_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait)
{
    uint64_t first = offset / region->block_size;
    uint64_t end = (offset + length + region->block_size - 1) / region->block_size;
    uint64_t most;

    if (end > region->nblocks)
        end = region->nblocks;
    if (first >= end || !length)
        return 0;
    pthread_mutex_lock(&region->lock);
    most = region->frames.limited ? pg_most_at_once(region) : end;
    pthread_mutex_unlock(&region->lock);
    return read_range(region, first, end - first > most ? first + most : end, wait);
}

int pg_replay(struct pg_region *region, const uint32_t *numbers, uint32_t count)
{
    struct pg_request request = {.stride = 1, .count = count, .marker = -1};
    uint32_t *copy = malloc((count ? count : 1) * sizeof *copy);
    int error = 0;

    if (!copy)
        return -ENOMEM;
    memcpy(copy, numbers, count * sizeof *copy);
    request.list = copy;
    pthread_mutex_lock(&region->lock);
    if (count > pg_most_at_once(region))
        request.count = (uint32_t)pg_most_at_once(region);
    if (region->replayed || (count && pg_put_request(region, request)))
        error = -EBUSY;
    else
        region->replayed = copy;
    pthread_mutex_unlock(&region->lock);
    if (error)
        free(copy);
    return error;
}

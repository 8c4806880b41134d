/* Read-ahead: recognize where a reader is going, and be there first. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"

static void ask(struct pg_region *region, struct pg_stream *stream)
{
    int64_t left = (stream->ahead - stream->last) / stream->stride, first, room, count;

    if (left < 0)
        left = 0;
    if (left > stream->window / 2 || region->request_count == PG_REQUESTS)
        return;
    stream->window = stream->window ? 2 * stream->window : 2;
    if (stream->window > region->policy.window_most)
        stream->window = region->policy.window_most;
    first = stream->last + (left + 1) * stream->stride;
    room = stream->stride > 0 ? region->nblocks - 1 - first : first;
    count = stream->window - left;
    if (room < 0 || count < 1)
        return;
    if (count > room / llabs(stream->stride) + 1)
        count = room / llabs(stream->stride) + 1;
    stream->ahead = first + (count - 1) * stream->stride;
    region->requests[region->request_count++] = (struct pg_request){
        .next = first,
        .stride = stream->stride,
        .count = (uint32_t)count,
        .marker = stream->ahead -
                  (count <= stream->window / 2 ? count - 1 : stream->window / 2) * stream->stride,
        .sequential = 1,
        .written = region->store.compressed && pg_is_written(stream)};
    pg_call_worker(region);
}

int pg_note_touch(struct pg_region *region, uint32_t number)
{
    struct pg_stream *stream = pg_follow(&region->streams, &region->blocks, number);

    stream->used = region->counters.faults;
    if (region->read_ahead && pg_is_certain(&region->streams, stream))
        ask(region, stream);
    return stream->run >= region->policy.scan_run;
}

/* Of blocks that are likely to be stored to one in so many is write-protected nevertheless, which
 * shows whether they are. */
enum { TRIED = 8 };

void pg_set_stores_only(struct pg_region *region, int only)
{
    pthread_mutex_lock(&region->lock);
    region->stores_only = only;
    /* Of those on their way some were guessed. A thread that wants to write has a fault more. */
    for (pg_entry entry = 0; only && entry < region->blocks.used; entry++)
        region->blocks.at[entry].flags &= (uint8_t)~PG_WRITE_WANTED;
    pthread_mutex_unlock(&region->lock);
}

/* Blocks that follow each other in the store, on their way into slots. */
struct chunk {
    pg_entry entries[PG_PIECES];
    uint16_t slots[PG_PIECES];
    uint32_t first;
    size_t count;
};

/* Whether a block is to come as if it had been stored to. Zeros that a program comes to one after
 * the other it fills, most likely, and if not, they are compressed to one word. */
static int is_to_be_stored(const struct pg_region *region, const struct pg_request *request,
                           uint32_t number)
{
    if (!region->store.compressed || region->stores_only || !request->sequential)
        return 0;
    return pg_is_blank(region, number) || (request->written && number % TRIED);
}

/* Whether one read can bring the block with those of the chunk. */
static int is_beside(const struct pg_region *region, const struct chunk *chunk, uint32_t number)
{
    return (number + 1 == chunk->first || number == chunk->first + chunk->count) &&
           pg_is_spilled(region, number) == pg_is_spilled(region, chunk->first) &&
           pg_is_blank(region, number) == pg_is_blank(region, chunk->first);
}

/* Begin a block at either end of the chunk. 0, or -1: the chunk is to end before it.
 * Drops the lock. */
static int begin_block(struct pg_region *region, struct chunk *chunk, uint32_t number,
                       const struct pg_request *request)
{
    uint16_t slot = region->jobs.starving ? PG_NO_SLOT : pg_slot_for_block(region);
    pg_entry entry;

    if (slot == PG_NO_SLOT)
        return -1;
    /* The lock was dropped: another thread may have been faster, or have freed it. */
    entry = pg_find(&region->blocks, number) == PG_NONE && pg_is_owned(region, number) &&
                    (!chunk->count || is_beside(region, chunk, number))
                ? pg_begin(&region->blocks, number)
                : PG_NONE;
    if (entry == PG_NONE) {
        pg_slot_back(region, slot, !pg_is_fresh_slot(&region->frames, slot));
        return -1;
    }
    pg_record_needed(&region->record, number);
    if (request->sequential)
        region->blocks.at[entry].flags |= PG_SEQUENCE;
    if (is_to_be_stored(region, request, number))
        region->blocks.at[entry].flags |= PG_WRITE_WANTED;
    if (chunk->count && number < chunk->first) {
        for (size_t i = chunk->count; i; i--) {
            chunk->entries[i] = chunk->entries[i - 1];
            chunk->slots[i] = chunk->slots[i - 1];
        }
        chunk->entries[0] = entry;
        chunk->slots[0] = slot;
    } else {
        chunk->entries[chunk->count] = entry;
        chunk->slots[chunk->count] = slot;
    }
    chunk->first = chunk->count && chunk->first < number ? chunk->first : number;
    chunk->count++;
    return 0;
}

static uint32_t block_of(const struct pg_request *request)
{
    return request->list ? request->list[request->next] : (uint32_t)request->next;
}

static void collect(struct pg_region *region, struct pg_request *request, struct chunk *chunk)
{
    size_t most = region->chunk_most;

    chunk->count = 0;
    if (llabs(request->stride) != 1)
        most = 1;
    while (request->count && chunk->count < most) {
        uint32_t number = block_of(request);
        int known = number >= region->nblocks || !pg_is_owned(region, number) ||
                    pg_find(&region->blocks, number) != PG_NONE;
        /* Zeros are there as soon as they are touched, and then most likely to be written. */
        known |= request->sequential && !known && pg_is_blank(region, number) &&
                 !is_to_be_stored(region, request, number);
        if (chunk->count && (known || !is_beside(region, chunk, number)))
            return;
        if (!known && begin_block(region, chunk, number, request)) {
            /* No memory for it now, or another thread has begun it. */
            if (pg_find(&region->blocks, number) == PG_NONE)
                request->count = 0;
            return;
        }
        request->next += request->stride;
        request->count--;
    }
}

static void arrived(struct pg_region *region, pg_entry entry, uint16_t slot, int marker,
                    int sequential, int *unshown)
{
    struct pg_block *block = &region->blocks.at[entry];
    struct pg_job job = {.entry = entry, .number = block->number, .slot = slot, .began = pg_now()};

    region->counters.prefetched++;
    if (block->flags & PG_WANTED) {
        pg_do_job(region, job);
    } else if (marker) {
        block->slot = slot;
        pg_become(&region->blocks, entry, PG_STAGED);
        if (region->frames.limited)
            pg_push_tail(&region->blocks, PG_STANDBY, entry);
        pthread_cond_broadcast(&region->changed);
    } else if (!pg_install(region, entry, &slot, unshown)) {
        pg_enlist(region, entry, sequential);
    } else if (block->flags & (PG_WANTED | PG_DIRTY)) {
        job.slot = slot;
        pg_put_off(region, job, ENOMEM, pg_backoff(1), 0);
    } else {
        pg_become(&region->blocks, entry, PG_ABSENT);
        if (slot != PG_NO_SLOT)
            pg_slot_back(region, slot, 1);
    }
}

/* Not read: forget it, unless a thread waits by now. */
static void did_not_arrive(struct pg_region *region, pg_entry entry, uint16_t slot)
{
    struct pg_job job = {.entry = entry,
                         .number = region->blocks.at[entry].number,
                         .slot = PG_NO_SLOT,
                         .began = pg_now()};

    pg_slot_back(region, slot, !pg_is_fresh_slot(&region->frames, slot));
    if (!(region->blocks.at[entry].flags & PG_WANTED))
        pg_become(&region->blocks, entry, PG_ABSENT);
    else if (pg_put_job(region, job))
        pg_do_job(region, job);
}

/* Blocks that move in by one call, each with a bit. */
enum { TOGETHER = 64 };

/* From the i-th on, up to the marker: how many have moved in together. */
static size_t arrived_together(struct pg_region *region, const struct chunk *chunk, size_t i,
                               int64_t marker, int sequential, int *unshown)
{
    size_t most = chunk->count - i, count;
    uint64_t wanted = 0;

    if (marker >= chunk->first + (int64_t)i && marker < chunk->first + (int64_t)chunk->count)
        most = (size_t)(marker - chunk->first) - i;
    most = most < TOGETHER ? most : TOGETHER;
    for (size_t k = 0; k < most; k++)
        if (region->blocks.at[chunk->entries[i + k]].flags & PG_WANTED)
            wanted |= UINT64_C(1) << k;
    count =
        most ? pg_install_together(region, chunk->entries + i, chunk->slots + i, most, unshown) : 0;
    for (size_t k = 0; k < count; k++) {
        region->counters.prefetched++;
        pg_enlist(region, chunk->entries[i + k], sequential);
        if (wanted >> k & 1)
            pg_note_filled(region, chunk->first + (uint32_t)(i + k), pg_now());
    }
    return count;
}

/* Bring one chunk in. 0 or -errno. Drops the lock. */
static int read_chunk(struct pg_region *region, struct chunk *chunk, int64_t marker, int sequential)
{
    int unshown = 0, error;

    pg_sort_slots(chunk->slots, chunk->count);
    pthread_mutex_unlock(&region->lock);
    error = pg_read_blocks(region, chunk->first, chunk->slots, chunk->count, 0);
    pthread_mutex_lock(&region->lock);
    region->counters.retries += error != 0;
    for (size_t i = 0, moved; i < chunk->count; i += moved ? moved : 1) {
        moved = error ? 0 : arrived_together(region, chunk, i, marker, sequential, &unshown);
        if (error)
            did_not_arrive(region, chunk->entries[i], chunk->slots[i]);
        else if (!moved)
            arrived(region, chunk->entries[i], chunk->slots[i],
                    (int64_t)chunk->first + (int64_t)i == marker, sequential, &unshown);
    }
    if (unshown)
        error = pg_show(&region->uffd, pg_block_address(region, chunk->first),
                        chunk->count * region->block_size);
    return error;
}

uint32_t pg_read_part(struct pg_region *region, struct pg_request *request, int *error)
{
    struct chunk chunk;

    collect(region, request, &chunk);
    if (chunk.count)
        *error = read_chunk(region, &chunk, request->marker, request->sequential);
    return (uint32_t)chunk.count;
}

static void drop_request(struct pg_region *region)
{
    region->request_count--;
    for (uint32_t i = 0; i < region->request_count; i++)
        region->requests[i] = region->requests[i + 1];
}

static void note_pending(struct pg_region *region, struct pg_awaited *awaited, int change)
{
    if (!awaited)
        return;
    awaited->pending += change;
    if (!awaited->pending)
        pthread_cond_broadcast(&region->changed);
}

void pg_read_ahead(struct pg_region *region)
{
    struct pg_request request = region->requests[0];
    struct chunk chunk;
    int error = 0;

    if (request.awaited && request.awaited->called_off)
        request.count = 0;
    /* Collecting drops the lock: nobody else may begin with the same blocks meanwhile. */
    region->ahead_busy = 1;
    collect(region, &request, &chunk);
    if (request.count) {
        region->requests[0] = request;
        note_pending(region, request.awaited, 1);
    } else {
        drop_request(region);
    }
    /* A helper answers several at a time; a file is read faster in order. */
    if (pg_has_helper(region)) {
        region->ahead_busy = 0;
        pg_call_worker(region);
    }
    if (chunk.count)
        error = read_chunk(region, &chunk, request.marker, request.sequential);
    /* Of a store that does not answer each chunk would take all patience. */
    if (error == -PG_NO_ANSWER && request.awaited)
        request.awaited->called_off = 1;
    note_pending(region, request.awaited, -1);
    if (!pg_has_helper(region))
        region->ahead_busy = 0;
}

int pg_put_request(struct pg_region *region, struct pg_request request)
{
    if (region->request_count == PG_REQUESTS)
        return -PG_NOT_NOW;
    region->requests[region->request_count++] = request;
    pg_call_worker(region);
    return 0;
}

void pg_drop_requests(struct pg_region *region)
{
    while (region->request_count && !region->ahead_busy) {
        note_pending(region, region->requests[0].awaited, -1);
        drop_request(region);
    }
}

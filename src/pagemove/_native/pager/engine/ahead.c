/* Read-ahead: recognize where a reader is going, and be there first. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/engine/leaving.h"
#include "pager/region.h"

enum {
    FARTHEST_STRIDE =
        64,           /* blocks; farther apart, two touches have nothing to do with each other */
    CHUNK = 2 << 20,  /* bytes of one read */
    MOST_SKIPPED = 8, /* blocks */
    DOUBTFUL = 2,
    MOST_DOUBT = 18,
};

/* Whether a reader may have come from one block to another without a fault in between. */
static int is_mapped_between(const struct pg_region *region, int64_t from, int64_t to,
                             int64_t stride)
{
    for (from += stride; from != to; from += stride) {
        pg_entry entry = pg_find(&region->blocks, (uint32_t)from);
        if (entry == PG_NONE || region->blocks.at[entry].state != PG_RESIDENT)
            return 0;
    }
    return 1;
}

/* How many steps the touch of a block takes a stream further; 0: it is not part of it. Blocks that
 * were there before do not count. */
static int64_t steps(const struct pg_region *region, const struct pg_stream *stream, int64_t number)
{
    int64_t distance = number - stream->last, covered;

    if (stream->run < 2 || distance % stream->stride)
        return 0;
    distance /= stream->stride;
    covered = (stream->ahead - stream->last) / stream->stride;
    covered = covered > 0 ? covered : 0;
    if (distance < 1 || distance > covered + 1 + MOST_SKIPPED)
        return 0;
    if (distance <= covered + 1)
        return distance;
    return is_mapped_between(region, stream->last + covered * stream->stride, number,
                             stream->stride)
               ? covered + 1
               : 0;
}

static struct pg_stream *continued(struct pg_region *region, int64_t number)
{
    for (int i = 0; i < PG_STREAMS; i++)
        if (steps(region, &region->streams[i], number))
            return &region->streams[i];
    return NULL;
}

/* A second touch near a first one: perhaps there is a stride. */
static struct pg_stream *perhaps_begun(struct pg_region *region, int64_t number)
{
    struct pg_stream *best = NULL;

    for (int i = 0; i < PG_STREAMS; i++) {
        struct pg_stream *stream = &region->streams[i];
        int64_t distance = llabs(number - stream->last);
        if (stream->run == 1 && distance && distance <= FARTHEST_STRIDE &&
            (!best || distance < llabs(number - best->last)))
            best = stream;
    }
    return best;
}

static struct pg_stream *replaced(struct pg_region *region)
{
    struct pg_stream *oldest = &region->streams[0];

    for (int i = 1; i < PG_STREAMS; i++)
        if (region->streams[i].used < oldest->used)
            oldest = &region->streams[i];
    return oldest;
}

/* How many steps make a sequence: one has followed two by chance more often than not, unless it is
 * to the next block. */
static uint32_t certain_from(const struct pg_stream *stream)
{
    return llabs(stream->stride) == 1 ? 2 : 3;
}

/* Blocks touched at random are neighbours now and then, and those of a search in the end always.
 * Where sequences seldom go on, more has to be seen of one before anything is read. */
static int is_certain(const struct pg_region *region, const struct pg_stream *stream)
{
    return stream->run >= certain_from(stream) + (region->doubt > DOUBTFUL ? 2 : 0);
}

static void note_begun(struct pg_region *region, const struct pg_stream *stream, int went_on)
{
    if (stream->run != certain_from(stream))
        return;
    if (!went_on)
        region->doubt += region->doubt < MOST_DOUBT;
    else if (region->doubt)
        region->doubt--;
}

static struct pg_stream *follow(struct pg_region *region, int64_t number)
{
    struct pg_stream *stream = continued(region, number);

    if (stream) {
        if (number == stream->last + stream->stride)
            note_begun(region, stream, 1);
        stream->run += (uint32_t)steps(region, stream, number);
        stream->last = number;
        return stream;
    }
    stream = perhaps_begun(region, number);
    if (stream) {
        stream->stride = number - stream->last;
        stream->last = stream->ahead = number;
        stream->run = 2;
        return stream;
    }
    stream = replaced(region);
    note_begun(region, stream, 0);
    *stream = (struct pg_stream){.last = number, .ahead = number, .run = 1};
    return stream;
}

static void ask(struct pg_region *region, struct pg_stream *stream)
{
    int64_t left = (stream->ahead - stream->last) / stream->stride, first, room, count;

    if (left < 0)
        left = 0;
    if (left > stream->window / 2 || region->request_count == PG_REQUESTS)
        return;
    stream->window = stream->window ? 2 * stream->window : 2;
    if (stream->window > region->window_most)
        stream->window = region->window_most;
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
        .sequential = 1};
    pg_call_worker(region);
}

int pg_note_touch(struct pg_region *region, uint32_t number)
{
    struct pg_stream *stream = follow(region, number);

    stream->used = region->counters.faults;
    if (region->read_ahead && is_certain(region, stream))
        ask(region, stream);
    return stream->run >= region->scan_run;
}

/* Blocks that follow each other in the store, on their way into slots. */
struct chunk {
    pg_entry entries[PG_PIECES];
    uint16_t slots[PG_PIECES];
    uint32_t first;
    size_t count;
};

/* Begin a block at either end of the chunk. 0, or -1: the chunk is to end before it.
 * Drops the lock. */
static int begin_block(struct pg_region *region, struct chunk *chunk, uint32_t number,
                       int sequential)
{
    uint16_t slot = region->starving ? PG_NO_SLOT : pg_slot_for_block(region);
    pg_entry entry;

    if (slot == PG_NO_SLOT)
        return -1;
    /* The lock was dropped: another thread may have been faster. */
    entry =
        pg_find(&region->blocks, number) == PG_NONE ? pg_begin(&region->blocks, number) : PG_NONE;
    if (entry == PG_NONE) {
        pg_slot_back(region, slot, !pg_is_fresh_slot(&region->frames, slot));
        return -1;
    }
    pg_note_needed(region, number);
    if (sequential)
        region->blocks.at[entry].flags |= PG_SEQUENCE;
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

/* Whether one read can bring the block with those of the chunk. */
static int is_beside(const struct pg_region *region, const struct chunk *chunk, uint32_t number)
{
    return (number + 1 == chunk->first || number == chunk->first + chunk->count) &&
           pg_is_spilled(region, number) == pg_is_spilled(region, chunk->first) &&
           pg_is_blank(region, number) == pg_is_blank(region, chunk->first);
}

static void collect(struct pg_region *region, struct pg_request *request, struct chunk *chunk)
{
    size_t most = region->chunk_most;

    chunk->count = 0;
    if (llabs(request->stride) != 1)
        most = 1;
    while (request->count && chunk->count < most) {
        uint32_t number = block_of(request);
        int known = number >= region->nblocks || pg_find(&region->blocks, number) != PG_NONE;
        /* Zeros are there as soon as they are touched, and then most likely to be written. */
        known |= request->sequential && !known && pg_is_blank(region, number);
        if (chunk->count && (known || !is_beside(region, chunk, number)))
            return;
        if (!known && begin_block(region, chunk, number, request->sequential)) {
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
        pg_become(&region->blocks, entry, PG_EVICTING);
        if (region->limited)
            pg_push_tail(&region->blocks, PG_STANDBY, entry);
        pthread_cond_broadcast(&region->changed);
    } else if (!pg_install(region, entry, &slot, unshown)) {
        pg_enlist(region, entry, sequential);
    } else if (block->flags & PG_WANTED) {
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

/* Bring one chunk in. 0 or -errno. Drops the lock. */
static int read_chunk(struct pg_region *region, const struct chunk *chunk, int64_t marker,
                      int sequential)
{
    int unshown = 0, error;

    pthread_mutex_unlock(&region->lock);
    error = pg_read_blocks(region, chunk->first, chunk->slots, chunk->count, 0);
    pthread_mutex_lock(&region->lock);
    region->counters.retries += error != 0;
    for (size_t i = 0; i < chunk->count; i++) {
        if (error)
            did_not_arrive(region, chunk->entries[i], chunk->slots[i]);
        else
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
        read_chunk(region, &chunk, request.marker, request.sequential);
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

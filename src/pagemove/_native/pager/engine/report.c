/* What the pager reports of itself. */
#include <errno.h>
#include <string.h>

#include "pager/mechanisms/channel.h"
#include "pager/mechanisms/trace.h"
#include "pager/region.h"

void pg_pause(struct pg_region *region, uint64_t nanoseconds)
{
    pthread_mutex_unlock(&region->lock);
    pg_sleep(nanoseconds);
    pthread_mutex_lock(&region->lock);
}

int pg_wait_changed(struct pg_region *region, uint64_t until)
{
    if (pg_now() >= until)
        return -PG_NOT_NOW;
    pg_wait_until(&region->changed, &region->lock, until);
    return 0;
}

/* Eight buckets to every power of two: within 12 percent of the truth. */
static void note_latency(struct pg_region *region, uint64_t nanoseconds)
{
    unsigned power, bucket;

    if (nanoseconds > INT64_MAX)
        return; /* of a block for which there was no hurry any more */
    if (nanoseconds < 8) {
        bucket = (unsigned)nanoseconds;
    } else {
        power = 63 - (unsigned)__builtin_clzll(nanoseconds);
        bucket = (power - 2) * 8 + (nanoseconds >> (power - 3) & 7);
    }
    region->histogram[bucket < PG_BUCKETS ? bucket : PG_BUCKETS - 1]++;
}

void pg_note_filled(struct pg_region *region, uint32_t number, uint64_t began)
{
    uint64_t took = pg_now() - began;

    note_latency(region, took);
    if (pg_tracing() && took <= INT64_MAX)
        pg_trace_put(region, PG_TRACE_FAULT, number * region->block_size, region->block_size,
                     pg_trace_clock() - took, 0);
}

uint64_t pg_bucket_limit(size_t bucket)
{
    return bucket < 8 ? bucket + 1 : (8 + bucket % 8 + 1) << (bucket / 8 - 1);
}

int pg_errno_of(int code)
{
    if (code == PG_SHORT || code == PG_NOT_DURABLE)
        return 0;
    if (code == PG_NO_ANSWER)
        return ETIMEDOUT;
    if (code == PG_GONE || code == PG_NOT_ASKED)
        return EPIPE;
    if (code == PG_NO_MEMORY)
        return ENOMEM;
    if (code == PG_LOST)
        return EBADF;
    return code == PG_NOT_NOW ? EBUSY : code;
}

void pg_note_failure(struct pg_region *region, int operation, uint32_t number, int error,
                     uint64_t tries)
{
    region->failures[region->failure_count % PG_FAILURES] =
        (struct pg_failure){.sequence = region->failure_count,
                            .operation = operation,
                            .error = pg_errno_of(error),
                            .offset = number * region->block_size,
                            .tries = tries};
    if (region->texts)
        pg_store_text(&region->store, operation, number * region->block_size, error,
                      region->texts[region->failure_count % PG_FAILURES]);
    region->failure_count++;
    pg_trace_moment(region, PG_TRACE_FAILED, number * region->block_size, region->block_size,
                    error);
}

void pg_failure_text(struct pg_region *region, uint64_t sequence, char text[PG_TEXT])
{
    text[0] = 0;
    pthread_mutex_lock(&region->lock);
    if (region->texts && sequence < region->failure_count &&
        region->failure_count - sequence <= PG_FAILURES)
        memcpy(text, region->texts[sequence % PG_FAILURES], PG_TEXT);
    pthread_mutex_unlock(&region->lock);
}

void pg_counters(struct pg_region *region, struct pg_counters *counters)
{
    pthread_mutex_lock(&region->lock);
    *counters = region->counters;
    counters->bytes_read = __atomic_load_n(&region->bytes_read, __ATOMIC_RELAXED);
    counters->resident = region->frames.total * region->block_size;
    counters->dirty = region->blocks.dirty * region->block_size;
    counters->leased = region->budget ? region->frames.limit * region->block_size : 0;
    counters->pinned = region->pinned * region->block_size;
    if (region->store.channel)
        counters->restarts = pg_channel_restarts(region->store.channel);
    pthread_mutex_unlock(&region->lock);
}

size_t pg_failures(struct pg_region *region, struct pg_failure *failures)
{
    size_t count, first;

    pthread_mutex_lock(&region->lock);
    count = region->failure_count < PG_FAILURES ? region->failure_count : PG_FAILURES;
    first = region->failure_count - count;
    for (size_t i = 0; i < count; i++)
        failures[i] = region->failures[(first + i) % PG_FAILURES];
    pthread_mutex_unlock(&region->lock);
    return count;
}

int pg_do_store_stats(struct pg_region *region, char text[PG_TEXT])
{
    return pg_store_describe(&region->store, text);
}

int pg_compresses(const struct pg_region *region)
{
    return region->store.compressed != NULL;
}

void pg_histogram(struct pg_region *region, uint64_t counts[PG_BUCKETS])
{
    pthread_mutex_lock(&region->lock);
    memcpy(counts, region->histogram, sizeof region->histogram);
    pthread_mutex_unlock(&region->lock);
}

uint64_t pg_state_bytes(struct pg_region *region)
{
    uint64_t bytes;

    pthread_mutex_lock(&region->lock);
    bytes = pg_blocks_bytes(&region->blocks);
    if (region->ghosts)
        bytes += (region->ghost_mask + 1) * sizeof *region->ghosts;
    pthread_mutex_unlock(&region->lock);
    return bytes;
}

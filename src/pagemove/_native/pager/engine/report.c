/* What the pager reports of itself. */
#include <errno.h>
#include <string.h>

#include "pager/engine/arriving.h"
#include "pager/engine/asked.h"
#include "pager/engine/lease.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/channel.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/trace.h"

enum {
    KEPT_TO_READ = 32, /* blocks, of an eighth of the limit or more */
    LEAST_SPARE = 8,   /* blocks that the store has room for, of a quarter of the limit or more */
};

/* ns to see whether what stays in place shrinks by now: some thousand blocks. */
#define LONGEST_TRIES UINT64_C(100000000)

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

void pg_note_filled(struct pg_region *region, uint32_t number, uint64_t began)
{
    uint64_t took = pg_now() - began;

    pg_note_latency(region->histogram, took);
    if (pg_tracing() && took <= INT64_MAX)
        pg_trace_put(region->base, PG_TRACE_FAULT, number * region->block_size, region->block_size,
                     pg_trace_clock() - took, 0);
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
    pg_trace_moment(region->base, PG_TRACE_FAILED, number * region->block_size, region->block_size,
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
    pg_look_for_answer(region, 0);
    *counters = region->counters;
    counters->bytes_read = __atomic_load_n(&region->bytes_read, __ATOMIC_RELAXED);
    counters->resident = region->frames.total * region->block_size;
    counters->dirty = region->blocks.dirty * region->block_size;
    counters->leased = region->budget ? region->frames.limit * region->block_size : 0;
    counters->pinned = region->frames.pinned * region->block_size;
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
    pg_look_for_answer(region, 0);
    memcpy(counts, region->histogram, sizeof region->histogram);
    pthread_mutex_unlock(&region->lock);
}

uint64_t pg_state_bytes(struct pg_region *region)
{
    uint64_t bytes;

    pthread_mutex_lock(&region->lock);
    bytes = pg_blocks_bytes(&region->blocks) + pg_ghosts_bytes(&region->policy);
    pthread_mutex_unlock(&region->lock);
    return bytes;
}

int pg_record(struct pg_region *region)
{
    int error;

    pthread_mutex_lock(&region->lock);
    error = pg_record_start(&region->record, region->nblocks);
    pthread_mutex_unlock(&region->lock);
    return error;
}

uint32_t pg_recorded(struct pg_region *region, uint32_t *numbers, uint32_t most)
{
    uint32_t count;

    pthread_mutex_lock(&region->lock);
    count = region->record.count;
    if (count && most)
        memcpy(numbers, region->record.numbers, (count < most ? count : most) * sizeof *numbers);
    pthread_mutex_unlock(&region->lock);
    return count;
}

int pg_lost(const struct pg_region *region)
{
    return pg_is_lost(region);
}

const int *pg_lost_flag(const struct pg_region *region)
{
    return &region->lost;
}

int pg_shares_helper(const struct pg_region *region)
{
    return region->store.channel && pg_channel_shares(region->store.channel);
}

uint64_t pg_address(const struct pg_region *region)
{
    return region->base;
}

int pg_moves(const struct pg_region *region)
{
    return region->uffd.moves;
}

int pg_kernel_faults(const struct pg_region *region)
{
    return !region->uffd.user_mode_only;
}

static int is_full(struct pg_region *region, uint64_t more, int zeros)
{
    uint64_t left = UINT64_MAX, reach = pg_lease_reach(region), spare, wanted;
    uint32_t most = reach < UINT32_MAX ? (uint32_t)reach : UINT32_MAX, kept, taken;

    /* What is clean can leave. Where all is dirty, and has no room to leave, what is stored cannot
     * be read any more: some frames are left for that. */
    kept = most / 8 > KEPT_TO_READ ? most / 8 : most / 2 < KEPT_TO_READ ? most / 2 : KEPT_TO_READ;
    taken = region->blocks.dirty + kept;
    if (region->frames.limited)
        left = most > taken ? (most - taken) * region->block_size : 0;
    /* Of what is dirty some has to find room whenever something else is read. */
    spare = (most / 4 > LEAST_SPARE ? most / 4 : LEAST_SPARE) * region->block_size;
    if (left >= more)
        return 0;
    wanted = zeros ? 0 : more - left;
    return pg_compressed_is_full(region->store.compressed, wanted, spare);
}

int pg_lacks_room(struct pg_region *region, uint64_t more, int zeros)
{
    uint64_t until;
    int full;

    if (!region->store.compressed)
        return 0;
    pthread_mutex_lock(&region->lock);
    full = is_full(region, more, zeros);
    if (full)
        pg_want_tries(region, region->blocks.in_place);
    until = pg_now() + LONGEST_TRIES;
    while (full && (region->want_tries || region->trying) && !pg_wait_changed(region, until))
        full = is_full(region, more, zeros);
    pthread_mutex_unlock(&region->lock);
    return full;
}

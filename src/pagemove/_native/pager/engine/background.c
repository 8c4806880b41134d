/* Changed blocks are written back when they have been changed for a while, though nothing makes
 * them leave: so a program that is killed has lost little. They are not made durable, as memory of
 * a mapped file is not by the kernel: only a flush does that.
 *
 * One batch at a time, each copied as a flush does, so that whoever stores is held up for
 * microseconds; between two batches faults, evictions and flushes have their turn. */
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/voice.h"

/* Entries that are looked at without a pause: some microseconds. */
enum { STRETCH = 8192 };

/* ns between two batches: as long as one took, within these. */
#define SHORTEST_PAUSE UINT64_C(100000)
#define LONGEST_PAUSE UINT64_C(5000000)

/* ns until what could not be written is tried again; doubled each time, up to the interval or a
 * second. */
#define FIRST_RETRY UINT64_C(100000000)
#define LEAST_RETRY UINT64_C(1000000000)

static int has_ended(const struct pg_region *region)
{
    return region->stop || pg_is_lost(region);
}

/* Drops the lock. */
static void rest(struct pg_region *region, uint64_t nanoseconds)
{
    uint64_t until = pg_later(pg_now(), nanoseconds);

    while (!has_ended(region) && pg_now() < until)
        pg_sleep_until(&region->unrest, &region->lock, until);
}

/* A flush that runs writes the same blocks, and comes first. Drops the lock. */
static struct pg_written write_batch(struct pg_region *region, pg_entry first)
{
    struct pg_written batch = {.next = first};
    pg_entry end;

    pg_begin_flush(region);
    end = region->blocks.used - first < STRETCH ? region->blocks.used : first + STRETCH;
    if (!has_ended(region)) {
        pg_look_at_merging(region);
        batch = pg_write_some(region, first, end, pg_batch(region));
    }
    pg_end_flush(region);
    return batch;
}

/* The store has not taken something. Said once, until it has. Drops the lock. */
static void note_trouble(struct pg_region *region, uint32_t number, int error)
{
    pg_note_failure(region, PG_OP_WRITE, number, error, 1);
    region->counters.errors++;
    pthread_mutex_unlock(&region->lock);
    pg_say("pagemove: cannot write changed blocks to %s: %s; they stay in memory, and are "
           "retried\n",
           region->store.label, pg_cause_of(error));
    pthread_mutex_lock(&region->lock);
}

static uint64_t pause_before_retry(struct pg_region *region)
{
    uint64_t interval = region->writeback_interval, pause = region->sweep_retry;
    uint64_t longest = interval > LEAST_RETRY ? interval : LEAST_RETRY;

    pause = pause ? pause : FIRST_RETRY;
    region->sweep_retry = pause < longest / 2 ? 2 * pause : longest;
    return pause;
}

/* How long to rest when all blocks have been looked at. */
static uint64_t end_sweep(struct pg_region *region)
{
    region->sweeping = 0;
    if (region->sweep_missed)
        return pause_before_retry(region);
    region->sweep_failures = region->sweep_retry = 0;
    return region->writeback_interval;
}

/* A batch: once over all blocks, from where the last time has ended, so that one that cannot be
 * written does not keep others from it. Returns how long to rest. Drops the lock. */
static uint64_t sweep(struct pg_region *region)
{
    uint64_t began = pg_now(), failed = region->write_failures, took;
    struct pg_written batch;
    pg_entry seen;

    if (!region->sweeping) {
        region->sweeping = 1;
        region->sweep_missed = 0;
        region->sweep_left = region->blocks.used;
    }
    if (!region->sweep_left || !region->blocks.dirty)
        return end_sweep(region);
    if (region->sweep_at >= region->blocks.used)
        region->sweep_at = 0;
    batch = write_batch(region, region->sweep_at);
    seen = batch.next - region->sweep_at;
    region->sweep_at = batch.next;
    region->sweep_left -= seen < region->sweep_left ? seen : region->sweep_left;
    region->counters.background_written += batch.written;
    region->sweep_missed |= batch.missed;
    if (batch.missed && region->write_failures != failed) {
        region->counters.background_failures++;
        if (!region->sweep_failures++)
            note_trouble(region, batch.failed, region->write_error);
        return end_sweep(region);
    }
    took = pg_now() - began;
    took = took < LONGEST_PAUSE ? took : LONGEST_PAUSE;
    return took > SHORTEST_PAUSE ? took : SHORTEST_PAUSE;
}

uint64_t pg_sweep(struct pg_region *region)
{
    uint64_t until = UINT64_MAX;

    pthread_mutex_lock(&region->lock);
    if (!has_ended(region))
        until = pg_later(pg_now(), sweep(region));
    pthread_mutex_unlock(&region->lock);
    return until;
}

void *pg_write_in_background(void *argument)
{
    struct pg_region *region = argument;

    pthread_mutex_lock(&region->lock);
    rest(region, region->writeback_interval);
    while (!has_ended(region))
        rest(region, sweep(region));
    pthread_mutex_unlock(&region->lock);
    return NULL;
}

/* Reads that the event loop has under way by io_uring: what the page cache does not have is read
 * without a worker, which saves two switches between threads a fault. Where io_uring is refused, or
 * too many are under way, workers read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "leaving.h"
#include "region.h"
#include "trace.h"

/* Not so many that little is left for what is resident, of a limit that pins and a budget change.
 */
static uint32_t most_now(const struct pg_region *region)
{
    uint32_t frames = pg_frames_shared(region);

    return frames / 8 < PG_RING ? frames / 8 : PG_RING;
}

void pg_flights_start(struct pg_region *region)
{
    /* What has no file is read by a helper, or is compressed memory. */
    if (region->store.fd >= 0 && region->ring_state >= 0)
        region->most_flights = most_now(region);
}

static int has_room(const struct pg_region *region)
{
    uint32_t flying = PG_RING - region->idle_flights;

    return flying < region->most_flights && flying < most_now(region);
}

void pg_reading_of(const struct pg_region *region, struct pg_reading *reading)
{
    const struct pg_direct *direct = &region->store.direct;

    *reading = (struct pg_reading){.queue = __atomic_load_n(&region->ring_state, __ATOMIC_RELAXED),
                                   .direct = __atomic_load_n(&direct->state, __ATOMIC_RELAXED),
                                   .alignment = direct->alignment};
}

int pg_try_ring(void)
{
    struct pg_ring ring;
    int error = pg_ring_open(&ring);

    if (!error)
        pg_ring_close(&ring);
    return error;
}

/* The first time that a block is not in the page cache: most regions over small files never need
 * one. */
static int open_ring(struct pg_region *region)
{
    int error;

    region->flights = malloc(PG_RING * sizeof *region->flights);
    error = region->flights ? pg_ring_open(&region->ring) : -ENOMEM;
    __atomic_store_n(&region->ring_state, error ? error : 1, __ATOMIC_RELAXED);
    while (!error && region->idle_flights < PG_RING) {
        region->idle_flight[region->idle_flights] = (uint16_t)region->idle_flights;
        region->idle_flights++;
    }
    return error;
}

/* Whether this thread can have another read under way. */
static int may_take_off(struct pg_region *region)
{
    if (!region->most_flights || region->ring_state < 0 ||
        !pthread_equal(pthread_self(), region->root))
        return 0;
    if (!region->ring_state && open_ring(region))
        return 0;
    return has_room(region);
}

int pg_is_cold(const struct pg_region *region)
{
    return region->cold && has_room(region);
}

int pg_take_off(struct pg_region *region, struct pg_job job, int fresh)
{
    struct pg_store *store = pg_is_spilled(region, job.number) ? &region->spill : &region->store;
    struct pg_place place;
    struct iovec vector;
    uint16_t which;

    if (!may_take_off(region) ||
        pg_store_place(store, job.number * region->block_size, region->block_size, &place))
        return -PG_NOT_NOW;
    which = region->idle_flight[region->idle_flights - 1];
    vector =
        (struct iovec){(void *)(uintptr_t)pg_slot_address(&region->frames, job.slot), place.length};
    if (pg_ring_read(&region->ring, place.fd, &vector, 1, place.offset, 0, which))
        return -PG_NOT_NOW;
    region->idle_flights--;
    region->flights[which] = (struct pg_flight){.job = job,
                                                .length = place.length,
                                                .wanted = place.wanted,
                                                .fresh = fresh,
                                                .round = region->round,
                                                .traced = pg_trace_begin()};
    pg_begin_work(region);
    return 0;
}

/* Drops the lock. */
static void land(struct pg_region *region, uint16_t which, int result)
{
    struct pg_flight flight = region->flights[which];
    struct pg_job job = flight.job;

    region->idle_flight[region->idle_flights++] = which;
    pg_end_work(region);
    if (flight.traced)
        pg_trace_since(region, PG_TRACE_READ, job.number * region->block_size, region->block_size,
                       flight.traced, result < 0 ? result : 0);
    /* What has ended as soon as it was submitted was in the page cache. */
    region->cold = flight.round != region->round;
    if (result >= 0 && (uint64_t)result >= flight.wanted) {
        char *slot = (char *)(uintptr_t)pg_slot_address(&region->frames, job.slot);
        memset(slot + flight.wanted, 0, region->block_size - flight.wanted);
        __atomic_add_fetch(&region->bytes_read, flight.wanted, __ATOMIC_RELAXED);
        pg_member_missed(&region->member, flight.wanted);
        pg_do_job(region, job);
        return;
    }
    /* It failed, or the file has become shorter: a worker finds out, with patience. */
    pg_slot_back(region, job.slot, !flight.fresh);
    job.slot = PG_NO_SLOT;
    if (pg_put_job(region, job))
        pg_do_job(region, job);
}

void pg_fly(struct pg_region *region)
{
    uint64_t which;
    int result;

    if (region->ring.queued)
        pg_ring_enter(&region->ring, 0);
    if (!region->ring.under_way && !region->ring.refused_count)
        return;
    if (pg_ring_has_ended(&region->ring)) {
        pthread_mutex_lock(&region->lock);
        while (pg_ring_take(&region->ring, &which, &result))
            land(region, (uint16_t)which, result);
        pthread_mutex_unlock(&region->lock);
    }
    region->round++;
}

void pg_ground(struct pg_region *region)
{
    uint64_t which;
    int result;

    if (region->ring_state == 1) {
        while (region->ring.queued || region->ring.under_way) {
            pg_ring_enter(&region->ring, 1);
            while (pg_ring_take(&region->ring, &which, &result))
                pg_end_work(region);
        }
        pg_ring_close(&region->ring);
    }
    free(region->flights);
    region->flights = NULL;
}

/* Reads that the event loop has under way by io_uring: what the page cache does not have is read
 * without a worker, which saves two switches between threads a fault. Where io_uring is refused, or
 * too many are under way, workers read. */
#include "pager/engine/flights.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "pager/engine/arriving.h"
#include "pager/engine/asked.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/threads.h"
#include "pager/mechanisms/trace.h"

/* Reads that are taken at once: threads that go on meanwhile have faults, whose reads are to be
 * under way before the rest is put into place. Fewer cost more in looks for those. */
enum { LANDINGS = 4 };

/* Not so many that little is left for what is resident, of a limit that pins and a budget change.
 */
static uint32_t most_now(const struct pg_region *region)
{
    uint32_t frames = pg_frames_shared(&region->frames);

    return frames / 8 < PG_RING ? frames / 8 : PG_RING;
}

void pg_flights_init(struct pg_flights *flights)
{
    *flights = (struct pg_flights){.thread = pthread_self(), .ring = {.fd = -1}};
}

int pg_flights_start(struct pg_region *region, struct pg_flights *shared)
{
    /* What has no file is read by a helper, or is compressed memory. */
    if (region->store.fd < 0 || region->ring_state < 0)
        return 0;
    if (shared) {
        region->flights = shared;
    } else {
        region->flights = malloc(sizeof *region->flights);
        if (!region->flights)
            return -ENOMEM;
        pg_flights_init(region->flights);
    }
    region->most_flights = most_now(region);
    return 0;
}

static int has_room(const struct pg_region *region)
{
    return region->flights->idle_count && region->flying < region->most_flights &&
           region->flying < most_now(region);
}

void pg_reading_of(const struct pg_region *region, struct pg_reading *reading)
{
    const struct pg_direct *direct = &region->store.direct;

    *reading = (struct pg_reading){.queue = __atomic_load_n(&region->ring_state, __ATOMIC_RELAXED),
                                   .direct = __atomic_load_n(&direct->state, __ATOMIC_RELAXED),
                                   .alignment = direct->alignment};
}

static void *try_ring(void *result)
{
    struct pg_ring ring;
    int *error = result;

    *error = pg_ring_open(&ring);
    if (!*error)
        pg_ring_close(&ring);
    return NULL;
}

/* By a thread that ends: the kernel takes a ring down in its own time, with task work of the thread
 * that had it. Until that has run no sleep of the thread lasts, as if a signal were pending, and in
 * a fault of a system call it cannot run: the thread would fault again and again, at full speed,
 * until its block is there (6.18). */
int pg_try_ring(void)
{
    pthread_t thread;
    int result = 0, error = pg_start_thread(&thread, "pagemove-ring", try_ring, &result);

    if (error)
        return error;
    pthread_join(thread, NULL);
    return result;
}

/* The first time that a block is not in the page cache: most regions over small files never need
 * one. */
static void open_ring(struct pg_flights *flights)
{
    int error;

    flights->flight = malloc(PG_RING * sizeof *flights->flight);
    error = flights->flight ? pg_ring_open(&flights->ring) : -ENOMEM;
    flights->state = error ? error : 1;
    if (error) {
        free(flights->flight);
        flights->flight = NULL;
    }
    while (!error && flights->idle_count < PG_RING) {
        flights->idle[flights->idle_count] = (uint16_t)flights->idle_count;
        flights->idle_count++;
    }
}

static int is_pilot(const struct pg_region *region)
{
    return region->most_flights && region->ring_state >= 0 &&
           pthread_equal(pthread_self(), region->flights->thread);
}

/* Whether this thread can have another read under way. */
static int may_take_off(struct pg_region *region)
{
    struct pg_flights *flights = region->flights;

    if (!is_pilot(region))
        return 0;
    if (!flights->state)
        open_ring(flights);
    if (!region->ring_state)
        __atomic_store_n(&region->ring_state, flights->state, __ATOMIC_RELAXED);
    return flights->state == 1 && has_room(region);
}

int pg_is_cold(const struct pg_region *region)
{
    return region->cold && is_pilot(region) && has_room(region);
}

int pg_take_off(struct pg_region *region, struct pg_job job, int fresh)
{
    struct pg_store *store = pg_is_spilled(region, job.number) ? &region->spill : &region->store;
    struct pg_flights *flights = region->flights;
    struct pg_place place;
    struct iovec vector;
    uint16_t which;

    if (!may_take_off(region) ||
        pg_store_place(store, job.number * region->block_size, region->block_size, &place))
        return -PG_NOT_NOW;
    which = flights->idle[flights->idle_count - 1];
    vector =
        (struct iovec){(void *)(uintptr_t)pg_slot_address(&region->frames, job.slot), place.length};
    if (region->engine && region->above->hold(region))
        return -PG_NOT_NOW;
    if (pg_ring_read(&flights->ring, place.fd, &vector, 1, place.offset, 0, which)) {
        if (region->engine)
            region->above->release(region);
        return -PG_NOT_NOW;
    }
    flights->idle_count--;
    flights->flight[which] = (struct pg_flight){.region = region,
                                                .job = job,
                                                .length = place.length,
                                                .wanted = place.wanted,
                                                .fresh = fresh,
                                                .traced = pg_trace_begin()};
    region->flying++;
    pg_begin_work(region);
    /* Alone: the device works while the next fault is looked at. */
    pthread_mutex_unlock(&region->lock);
    flights->flight[which].cached = pg_ring_submit(&flights->ring, which);
    pthread_mutex_lock(&region->lock);
    return 0;
}

/* Drops the lock. */
static void land(struct pg_region *region, const struct pg_flight *flight, int result)
{
    struct pg_job job = flight->job;

    region->flying--;
    region->cold = !flight->cached;
    pg_end_work(region);
    if (flight->traced)
        pg_trace_since(region->base, PG_TRACE_READ, job.number * region->block_size,
                       region->block_size, flight->traced, result < 0 ? result : 0);
    if (result >= 0 && (uint64_t)result >= flight->wanted) {
        char *slot = (char *)(uintptr_t)pg_slot_address(&region->frames, job.slot);
        memset(slot + flight->wanted, 0, region->block_size - flight->wanted);
        __atomic_add_fetch(&region->bytes_read, flight->wanted, __ATOMIC_RELAXED);
        pg_member_missed(&region->member, flight->wanted);
        pg_do_job(region, job);
        return;
    }
    /* It failed, or the file has become shorter: a worker finds out, with patience. */
    pg_slot_back(region, job.slot, !flight->fresh);
    job.slot = PG_NO_SLOT;
    if (pg_put_job(region, job))
        pg_do_job(region, job);
}

static void take_landed(struct pg_flights *flights)
{
    uint64_t which;
    int result;

    /* Of those that were refused the ring's descriptor does not tell. */
    for (int i = 0; (i < LANDINGS || flights->ring.refused_count) &&
                    pg_ring_take(&flights->ring, &which, &result);
         i++) {
        struct pg_flight flight = flights->flight[which];
        struct pg_region *region = flight.region;

        flights->idle[flights->idle_count++] = (uint16_t)which;
        pthread_mutex_lock(&region->lock);
        land(region, &flight, result);
        pthread_mutex_unlock(&region->lock);
        if (region->engine)
            region->above->release(region);
    }
}

void pg_fly(struct pg_flights *flights)
{
    if (flights->state == 1 && pg_ring_has_ended(&flights->ring))
        take_landed(flights);
}

void pg_ground(struct pg_flights *flights)
{
    if (flights->state != 1)
        return;
    /* They land as others do: whoever saves a lost region may wait for one. */
    while (flights->ring.under_way || flights->ring.refused_count) {
        pg_ring_enter(&flights->ring, 1);
        take_landed(flights);
    }
    pg_ring_close(&flights->ring);
    free(flights->flight);
    flights->state = -ECANCELED;
}

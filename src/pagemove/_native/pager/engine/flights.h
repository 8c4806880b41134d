/* Reads that an event loop has under way by io_uring: its own region's, or those of all that an
 * engine serves. */
#ifndef PAGEMOVE_PAGER_ENGINE_FLIGHTS_H
#define PAGEMOVE_PAGER_ENGINE_FLIGHTS_H

#include "pager/engine/region.h"
#include "pager/mechanisms/uring.h"

/* A read of a block for which the event loop does not wait. */
struct pg_flight {
    struct pg_region *region;
    struct pg_job job; /* its slot is being read into */
    uint64_t length, wanted;
    int fresh;
    int cached; /* it ended as it was submitted: it was in the page cache */
    uint64_t traced;
};

/* Only the event loop's thread uses it. */
struct pg_flights {
    pthread_t thread;
    struct pg_ring ring;
    int state; /* 0: not tried yet; 1: the ring is open; -errno: refused */
    struct pg_flight *flight;
    uint16_t idle[PG_RING];
    uint32_t idle_count;
};

/* For the thread that is to use it. */
void pg_flights_init(struct pg_flights *flights);

/* Take some of what has ended: the ring stays readable if there is more. Wants no region's lock. */
void pg_fly(struct pg_flights *flights);

/* Wait for what is under way, and take that too. */
void pg_ground(struct pg_flights *flights);

#endif

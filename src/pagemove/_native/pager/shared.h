/* What all regions over files share: one thread that answers faults, a pool of threads for what may
 * have to wait, one file table, one pair of userfaultfds.
 *
 * Regions whose store runs in a helper have threads and a table of their own: each waits for its
 * helper in other ways, which has the region's userfaultfd.
 *
 * Locks, outermost first: that of all regions (forks.c), `places_lock`, a region's, `lock`. */
#ifndef PAGEMOVE_PAGER_SHARED_H
#define PAGEMOVE_PAGER_SHARED_H

#include "pager/engine/flights.h"
#include "pager/life.h"
#include "pager/mechanisms/threads.h"

enum {
    PG_KINDS = 4, /* of userfaultfds: with and without moves, and faults of the kernel */
    PG_POOL = 4,  /* threads at work, unless what they wait for does not come */
};

/* The addresses of a region. */
struct pg_site {
    uint64_t base, end;
    struct pg_region *region;
};

struct pg_queue {
    struct pg_region *first, **last;
};

struct pg_worker {
    struct pg_engine *engine;
    pthread_t thread;
    struct pg_worker *next;
};

struct pg_engine {
    /* With the lock of all regions. */
    unsigned members; /* regions that the program has */
    int sentinel;     /* in the program's table; files for the pager are passed over it */
    struct pm_identity sentinel_identity;

    int watched, wakeup; /* in the pager's: the other end, and an eventfd */
    pthread_t reactor;
    struct pg_flights flights;

    /* Which region is where, by address; the reactor has the lock while it serves any. */
    pthread_mutex_t places_lock;
    struct pg_site *places;
    uint32_t place_count, place_room;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* there may be something to do for the pool */
    pthread_cond_t left;    /* it has started, or a thread of the pool has ended */
    int started, error;
    unsigned regions; /* that are not freed; the program may have abandoned some */
    int retired;      /* there are no members: it ends with the last region */
    int detached;     /* nobody waits for that */
    uint64_t ids;
    struct pg_region *openings; /* whose file is on its way */
    struct pg_uffd kinds[PG_KINDS];
    int has_kind[PG_KINDS];

    /* The pool (pool.c). */
    struct pg_queue queues[PG_TASKS];
    struct pg_region
        *timed; /* with something to do later, the first of it not before `timed_due` */
    uint64_t timed_due;
    unsigned threads, idle, busy; /* busy: with tasks that are limited */
    uint64_t stalled_since;       /* when the last of those was begun, or could not be */
    int stop;
    struct pg_worker *dead; /* to be joined */
    struct pg_worker *alive;

    /* What the reactor has to look at, not before `due`. */
    struct pg_region *armed, **armed_last;
    uint32_t armed_count;
    uint64_t due;
    int asleep; /* it waits for events alone */
};

/* Whether this thread is one of the pager's and has the table of an engine. */
extern PG_THREAD_LOCAL struct pg_engine *pg_inside;

/* shared.c */

/* Have an engine for a region, and leave it. Want the lock of all regions. pg_engine_leave: NULL,
 * or an engine to be ended by pg_engine_end, without that lock. */
int pg_engine_enter(struct pg_region *region);
struct pg_engine *pg_engine_leave(struct pg_region *region);
void pg_engine_end(struct pg_engine *engine);

/* In a forked child: close what it has of an engine, and forget all. Want the lock of all regions.
 */
void pg_engine_close_sentinel(struct pg_engine *engine);
void pg_engine_forked(void);

/* Pass the file of a region to the pager's table, and have the region opened. 0 or -errno: then it
 * was never there. */
int pg_engine_pass(struct pg_region *region);

/* The same file in the pager's table, or -errno. */
int pg_engine_receive(struct pg_region *region);

/* Wait until no thread of the engine knows the region any more, which has ended; and say so. They
 * do not touch the engine, which may end meanwhile. */
void pg_engine_await_gone(struct pg_region *region);
void pg_engine_note_gone(struct pg_region *region);

/* The userfaultfds for a region. 0 or -errno. */
int pg_engine_uffd(struct pg_region *region, int moves, int kernel_faults);

/* Have the faults in a region served from now on, or no more. */
int pg_engine_place(struct pg_region *region);
void pg_engine_displace(struct pg_region *region);

/* NULL: nobody's. Wants the lock of places. */
struct pg_region *pg_engine_find(const struct pg_engine *engine, uint64_t address);

/* reactor.c */
void *pg_react(void *engine);

/* Have the reactor look at a region's jobs then. Wants the region's lock. */
void pg_arm(struct pg_region *region, uint64_t when);

/* Wake it where it waits for events alone, or with `always`. Wants the engine's lock. */
void pg_wake_reactor(struct pg_engine *engine, int always);

/* pool.c */

/* Threads of the pool: see that one is idle, or end all. The first wants the engine's lock. */
int pg_pool_spare(struct pg_engine *engine);
void pg_pool_end(struct pg_engine *engine);

/* Have the pool do something for a region; the second wants the engine's lock. */
void pg_pool_put(struct pg_region *region, enum pg_task task);
void pg_pool_queue(struct pg_region *region, enum pg_task task);

/* Keep the region while the reactor has a read of it under way; and no longer, after which it may
 * be gone. 0, or -ESHUTDOWN: it is ending. */
int pg_pool_hold(struct pg_region *region);
void pg_pool_release(struct pg_region *region);

/* That there is nothing more to be done for it once what is under way has ended. */
void pg_pool_close(struct pg_region *region);

/* That the changes of a region be written back then. */
void pg_pool_sweep_at(struct pg_region *region, uint64_t when);

/* A worker leaves a region, and has seen that there is nothing to do until then; with `again`
 * others come first. Wants the region's lock. */
void pg_pool_worked(struct pg_region *region, uint64_t due, int again);

/* Whether others wait for a thread. */
int pg_pool_is_wanted(struct pg_engine *engine);

/* timed.c */

/* Have the idle thread of the pool look at what is due for a region, and do that; or no more. Want
 * the engine's lock. */
void pg_enter_timed(struct pg_region *region);
void pg_leave_timed(struct pg_region *region);

/* Queue what is due by now. Wants it too. */
void pg_look_at_timed(struct pg_engine *engine, uint64_t now);

/* region.c: what the pool does when nothing of a region is under way any more. Returns whether the
 * region was freed. */
int pg_finish(struct pg_region *region);

/* region.c: make the region, which a program waits for. */
void pg_open_shared(struct pg_region *region);

/* calls.c: make the next call. */
void pg_make_call(struct pg_region *region);

#endif

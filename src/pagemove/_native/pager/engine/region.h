/* One region: everything its threads share. Functions that take one want its lock held, unless they
 * say otherwise; those marked "drops the lock" release it on the way, so what was known of other
 * blocks may no longer hold when they return. */
#ifndef PAGEMOVE_PAGER_ENGINE_REGION_H
#define PAGEMOVE_PAGER_ENGINE_REGION_H

#include <pthread.h>
#include <stdint.h>

#include "descriptors.h"
#include "pager/engine/above.h"
#include "pager/mechanisms/budget.h"
#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/config.h"
#include "pager/mechanisms/staging.h"
#include "pager/mechanisms/store.h"
#include "pager/mechanisms/uffd.h"
#include "pager/state/blocks.h"
#include "pager/state/counters.h"
#include "pager/state/frames.h"
#include "pager/state/jobs.h"
#include "pager/state/policy.h"
#include "pager/state/record.h"
#include "pager/state/streams.h"

enum {
    PG_TAKERS = 4,      /* of an array that is handed over: they wait for the giver */
    PG_WORKERS = 2,     /* for a file; as many as there are lanes to a helper */
    PG_COMPRESSORS = 8, /* for compressed memory, at most */
    PG_REQUESTS = 16,
    PG_BATCH = 16,   /* blocks that leave, or are written back, at once */
    PG_CALLERS = 16, /* calls of the program under way at once */
    PG_POSTED = 8,   /* that no thread waits for, and those that have not begun */
    PG_REFUSED = 16,
    PG_LEAST_FRAMES = 4, /* and no instruction needs more than these */
};

/* What a thread waits for that is read ahead. */
struct pg_awaited {
    int pending;    /* parts of it that are not there yet */
    int called_off; /* the rest need not be read */
};

/* Blocks to be read ahead. */
struct pg_request {
    int64_t next, stride; /* blocks */
    uint32_t count;
    int64_t marker; /* left in its slot, so that its touch shows how far the reader has come */
    int sequential; /* a guess of the pager; else the user has asked */
    int written;    /* a guess too: they are stored to as soon as they are there */
    const uint32_t *list;       /* blocks in an order of their own: `next` counts these */
    struct pg_awaited *awaited; /* by a thread that waits */
};

/* A page that was stored to in mode "r", poisoned until then. */
struct pg_refused {
    uint64_t page, until;
};

/* What the pool (pool.c) does for a region: the program's calls, what workers do, and writing back
 * in the background. */
enum pg_task { PG_TASK_CALL, PG_TASK_WORK, PG_TASK_SWEEP, PG_TASKS };

/* What an engine keeps of a region; with its lock. */
struct pg_share {
    struct pg_region *next[PG_TASKS]; /* in its queues */
    unsigned queued[PG_TASKS], running[PG_TASKS];
    unsigned inside; /* threads that do something for it */
    int closing;     /* nothing more is to come */
    int over;        /* and all has been done; a late fault in it asks in vain */
    int gone;        /* no thread knows it any more */
    uint64_t work_due, sweep_due;
    struct pg_region *timed_next, **timed_link;
    struct pg_region *armed_next;
    int armed;
    uint64_t id; /* of the message that its file comes in */
    int passed;  /* that file, or -errno */
    struct pg_region *opening_next;
};

struct pg_region {
    uint64_t base, length, block_size, nbytes;
    uint32_t nblocks;
    int mode, read_ahead;
    int huge;    /* blocks are huge pages */
    int dumped;  /* resident blocks are in core dumps */
    int merging; /* whether the process wanted its memory merged when that was last looked at */
    uint64_t timeout;
    char *spill_directory;
    struct pg_uffd uffd;
    struct pg_store store, spill;
    int flush_retryable; /* a flush that fails loses nothing */
    uint64_t *spilled;   /* a bit for each block that is in the spill file, or in a blank store */
    uint64_t doubted[8]; /* pages that were touched, it seems, and that no object has (faults.c) */
    unsigned doubts;
    uint64_t *owned; /* a bit for each block that an object has; NULL: all are as good */
    int blank;       /* blocks without that bit are zeros (discard.c) */
    int plain;       /* the kernel alone serves it (plain.c); with the lock, atomically */
    int forked;      /* while it was plain: a child may share its pages */
    int carries;     /* a child made by fork is to have it too (carried.c), atomically */
    int staying;     /* no block is to leave now */
    int stores_only; /* blocks become dirty by a store, and not by a guess that one will come */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* the state of a block, or a frame is free */
    pthread_cond_t work;    /* there is some for a worker */
    struct pg_blocks blocks;
    struct pg_frames frames;
    uint32_t frames_most; /* it was made for so many; its limit is less while others have more */
    struct pg_budget *budget; /* or NULL: the limit is its own */
    struct pg_member member;  /* of the budget; with its lock */

    struct pg_policy policy; /* who leaves first */

    /* Writing back (writeback.c). */
    int flushing;               /* one flush at a time */
    uint32_t epoch, writing[2]; /* batches under way that began in an even, an odd epoch */
    uint64_t write_pause, write_not_before, write_failing_since;
    uint64_t write_failures;
    int write_error;        /* of the last attempt */
    int unsynced;           /* something was written that was not made durable */
    int unsynced_evicted;   /* blocks have left that were not made durable */
    int sync_lost;          /* and then making durable failed */
    int syncing;            /* the store makes durable what was written before */
    uint64_t sync_failures; /* that may have dropped what was written */

    /* In the background (background.c). */
    uint64_t writeback_interval; /* ns; 0: never */
    pthread_cond_t unrest;       /* the writer is to end */
    pthread_t writer;
    int has_writer;
    int sweeping, sweep_missed; /* under way; some could not be written */
    pg_entry sweep_at, sweep_left;
    uint64_t sweep_failures, sweep_retry;
    int outlives; /* what is written is there for others when this process has ended */

    /* What workers do (work.c, ahead.c). */
    struct pg_jobs jobs;
    unsigned working;            /* threads that may be in I/O now */
    int want_writes, write_busy; /* dirty blocks are to be written; a worker does so */
    uint32_t trying;             /* threads that have some out */
    uint32_t want_tries;         /* of blocks in place, again (inplace.c) */
    uint32_t left;               /* blocks that have left since one was */
    struct pg_request requests[PG_REQUESTS];
    uint32_t request_count;
    struct pg_streams streams;
    uint32_t chunk_most; /* blocks of one read */
    int ahead_busy; /* one thread at a time decides what is next; of a file, until it is there */
    uint32_t *replayed;
    struct pg_gather *gathers; /* that are read, the oldest first (gather.c) */
    uint32_t gatherers;        /* threads that only help with them */

    struct pg_record record;

    struct pg_counters counters;
    uint64_t bytes_read; /* counted without the lock */
    uint64_t histogram[PG_BUCKETS];
    struct pg_failure failures[PG_FAILURES];
    uint64_t failure_count;
    uint64_t wait_said;     /* when it may be said again that memory is waited for */
    char (*texts)[PG_TEXT]; /* what the helper said of each, where there is one */

    struct pg_refused refused[PG_REFUSED]; /* of the event loop (refuse.c) */
    uint32_t refused_count;
    uint64_t refused_said;                             /* when that was said */
    uint64_t refused_page, refused_for, refused_until; /* the last of them */

    struct pg_lane *lane; /* on which the event loop has asked for a small block, or NULL */
    struct pg_job asked;
    int listening;    /* its answer comes by the lane's socket, also when all is well */
    int asked_late;   /* it was given up, but the helper may still put it there */
    int stop, wakeup; /* wakeup: an eventfd */

    /* Reads that the event loop has under way (flights.c). */
    struct pg_flights *flights; /* an engine's, or its own; NULL: there is nothing to be read so */
    int ring_state;             /* 0: not tried yet; 1: in use; -errno: refused */
    uint32_t flying, most_flights;
    int cold; /* the last block was not in the page cache: do not look there first */
    uint32_t threads;
    pthread_t thread[PG_LANES]; /* the workers that run */
    uint32_t workers;           /* how many there are to be */
    pthread_t root;             /* the event loop; it opens everything, and closes it in the end */

    uint32_t *pins; /* how often each block is pinned (pin.c); NULL: none ever was */

    const struct pg_above *above; /* who does what the engine cannot (above.h) */
    struct pg_engine *engine;     /* that it shares with others (shared.h); NULL: it has threads and
                                   * descriptors of its own */
    struct pg_share share;
    int shares; /* it is to have an engine */

    /* What the program's threads want of those that have the descriptors (calls.c). */
    pthread_mutex_t calls_lock;
    pthread_cond_t called, answered;
    struct pg_call *calls;
    pthread_t caller[PG_CALLERS];
    uint32_t callers, idle_callers, posted; /* posted: nobody waits for them */

    /* Its beginning and its end, which the program may not have waited for. */
    struct pg_opening *opening;
    int unopened;  /* no thread has begun with that */
    int is_open;   /* calls can be made */
    int ending;    /* it is to end */
    int ended;     /* of its threads only `root` is left, and that has closed everything */
    int abandoned; /* `root` is to free it */

    /* Closed with all that the program has open: then the region is lost to it (lost.c). */
    int sentinel; /* in the program's table, the writing end of a pipe */
    struct pm_identity sentinel_identity;
    int watched; /* in the pager's, the reading end */
    int lost, has_saver;
    int let_go; /* the program closed its descriptors while it was plain */
    pthread_t saver;

    struct pg_region *next, **link; /* of all regions, for fork */
    struct pg_stone *stone;         /* what a forked child says of it (inherited.c) */
    int remedy;                     /* and what is to be done about that */
    struct pg_stone *grave;         /* what is said of it when it is closed with arrays left */
    int inherited;                  /* it is the parent's */
    /* Of an inherited one (heirs.c), which is mapped already: what was first opened. Else NULL. */
    const struct pg_region *origin;
    /* Of a carried one, while it is made anew: what it was in the parent. Else NULL. And in which
     * process it was, atomically; 0: in the first. */
    struct pg_region *former;
    uint64_t carried_in;
    pid_t holder; /* the thread that holds it for a fork */
    int lacking;  /* -errno: the child cannot have its files */
    int carried;  /* the child that is being forked is to have it; with the lock of all regions */
    uint64_t carried_limit; /* bytes, that there; for a budget is one process's */
    enum pg_hold { PG_NOT_HELD, PG_HOLD_ASKED, PG_HELD, PG_LET_GO } holding;
    pthread_cond_t held; /* that changes, with the lock of calls */
};

/* Wait for the state of a block to change, for a slice of time at most: look again. 0, or
 * -PG_NOT_NOW: it is late. Drops the lock. */
int pg_wait_changed(struct pg_region *region, uint64_t until);

/* Sleep without the lock. Drops the lock. */
void pg_pause(struct pg_region *region, uint64_t nanoseconds);

static inline uint64_t pg_block_address(const struct pg_region *region, uint32_t number)
{
    return region->base + number * region->block_size;
}

static inline int pg_is_pinned(const struct pg_region *region, uint32_t number)
{
    return region->pins && region->pins[number];
}

static inline int pg_writable(const struct pg_region *region)
{
    return region->mode != PG_READ;
}

/* Whether a helper has the store. */
static inline int pg_has_helper(const struct pg_region *region)
{
    return region->store.channel != NULL;
}

/* Whether a block was given up that a helper may still put into the region. */
static inline int pg_is_late(const struct pg_region *region, uint32_t number)
{
    return region->asked_late && region->asked.number == number;
}

static inline int pg_is_plain(const struct pg_region *region)
{
    return __atomic_load_n(&region->plain, __ATOMIC_ACQUIRE);
}

static inline int pg_is_lost(const struct pg_region *region)
{
    return __atomic_load_n(&region->lost, __ATOMIC_ACQUIRE);
}

/* discard.c: a bit for each block, all 0. NULL: no memory. */
uint64_t *pg_new_bits(const struct pg_region *region);
void pg_free_bits(const struct pg_region *region, uint64_t *bits);

#endif

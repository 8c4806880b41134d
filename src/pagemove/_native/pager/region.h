/* One region: everything its threads share. Functions that take one want its lock held, unless they
 * say otherwise; those marked "drops the lock" release it on the way, so what was known of other
 * blocks may no longer hold when they return. */
#ifndef PAGEMOVE_PAGER_REGION_H
#define PAGEMOVE_PAGER_REGION_H

#include <pthread.h>
#include <stdint.h>

#include "descriptors.h"
#include "pager/engine/gather.h"
#include "pager/mechanisms/budget.h"
#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/store.h"
#include "pager/mechanisms/uffd.h"
#include "pager/pager.h"
#include "pager/state/blocks.h"
#include "pager/state/frames.h"

enum {
    PG_WORKERS = 2,     /* for a file; as many as there are lines to a helper */
    PG_COMPRESSORS = 8, /* for compressed memory, at most */
    PG_JOBS = 256,      /* room for so many at first */
    PG_STREAMS = 8,
    PG_REQUESTS = 16,
    PG_BATCH = 16,   /* blocks that leave, or are written back, at once */
    PG_CALLERS = 16, /* calls of the program under way at once */
    PG_POSTED = 8,   /* that no thread waits for, and those that have not begun */
    PG_REFUSED = 16,
    PG_TIGHT = 32,       /* below so many frames one instruction may need most of them */
    PG_LEAST_FRAMES = 4, /* and no instruction needs more than these */
};

/* A block that a thread waits for and that could not be filled at once. */
struct pg_job {
    pg_entry entry;
    uint32_t number;
    uint16_t slot;  /* PG_NO_SLOT, or one that has the contents already */
    int starved;    /* all it lacks is a frame */
    int writing;    /* wait for a WRITING block, which needs no read but a frame */
    int recovering; /* nobody waits: take poison away, if the block has not left meanwhile */
    uint64_t tries, began, not_before;
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
    const uint32_t *list;       /* blocks in an order of their own: `next` counts these */
    struct pg_awaited *awaited; /* by a thread that waits */
};

/* An access pattern: faults at a constant distance from one another. */
struct pg_stream {
    int64_t last, stride, ahead; /* ahead: the farthest block asked for */
    uint32_t run, window;
    uint64_t used; /* when, in faults: the longest unused is replaced */
};

/* A page that was stored to in mode "r", poisoned until then. */
struct pg_refused {
    uint64_t page, until;
};

/* A block that has left. */
struct pg_ghost {
    uint32_t number;
    uint32_t evicted : 30; /* the eviction's number, modulo 2^30 */
    uint32_t kind : 2;
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
    int mode, limited, read_ahead;
    int huge;    /* blocks are huge pages */
    int dumped;  /* resident blocks are in core dumps */
    int merging; /* whether the process wanted its memory merged when that was last looked at */
    uint64_t timeout;
    char *spill_directory;
    struct pg_uffd uffd;
    struct pg_store store, spill;
    int flush_retryable; /* a flush that fails loses nothing */
    uint64_t *spilled;   /* a bit for each block that is in the spill file, or in a blank store */
    int blank;           /* blocks without that bit are zeros (discard.c) */
    int plain;           /* the kernel alone serves it (plain.c); with the lock, atomically */
    int forked;          /* while it was plain: a child may share its pages */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* the state of a block, or a frame is free */
    pthread_cond_t work;    /* there is some for a worker */
    struct pg_blocks blocks;
    struct pg_frames frames;
    uint32_t frames_most; /* it was made for so many; its limit is less while others have more */
    struct pg_budget *budget; /* or NULL: the limit is its own */
    struct pg_member member;  /* of the budget; with its lock */

    /* Who leaves first (policy.c). */
    uint32_t recent_most, standby_wanted, scan_run;
    uint32_t scan_wanted, scan_least, scan_most; /* blocks of RECENT and SCAN together */
    uint32_t once_wanted;                        /* of ONCE */
    uint32_t policy_frames;                      /* of which those are parts */
    double once_share, scan_share;
    uint32_t scanned, oldest_first, random; /* scanned: at which eviction, the last time */

    /* What was learnt from blocks that were missed (ghosts.c). */
    struct pg_ghost *ghosts;
    uint32_t ghost_mask, evictions;
    uint32_t against_oldest, newest_since;

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
    struct pg_job *jobs;
    uint32_t job_count, job_room;
    uint32_t starving;           /* jobs that lack a frame: the next ones are theirs */
    unsigned working;            /* threads that may be in I/O now */
    int want_writes, write_busy; /* dirty blocks are to be written; a worker does so */
    struct pg_request requests[PG_REQUESTS];
    uint32_t request_count;
    struct pg_stream streams[PG_STREAMS];
    uint32_t doubt; /* beginnings of a sequence that went no further, less those that did */
    uint32_t window_most, chunk_most; /* blocks of a window, of one read */
    int ahead_busy; /* one thread at a time decides what is next; of a file, until it is there */
    uint32_t *replayed;
    struct pg_gather *gathers; /* that are read, the oldest first (gather.c) */
    uint32_t gatherers;        /* threads that only help with them */

    uint32_t *record;   /* blocks in the order they were first needed, while that is recorded */
    uint64_t *recorded; /* a bit for each that is there already */
    uint32_t record_count, record_room;

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

    struct pg_line *line; /* on which the event loop has asked for a small block, or NULL */
    struct pg_job asked;
    int asked_late;   /* it was given up, but the helper may still put it there */
    int stop, wakeup; /* wakeup: an eventfd */

    /* Reads that the event loop has under way (flights.c). */
    struct pg_flights *flights; /* an engine's, or its own; NULL: there is nothing to be read so */
    int ring_state;             /* 0: not tried yet; 1: in use; -errno: refused */
    uint32_t flying, most_flights;
    int cold; /* the last block was not in the page cache: do not look there first */
    uint32_t threads;
    pthread_t thread[PG_LINES]; /* the workers that run */
    uint32_t workers;           /* how many there are to be */
    pthread_t root;             /* the event loop; it opens everything, and closes it in the end */

    uint32_t *pins;  /* how often each block is pinned (pin.c); NULL: none ever was */
    uint32_t pinned; /* blocks that are, each in a frame of its own */

    struct pg_engine *engine; /* that it shares with others (shared.h); NULL: it has threads and
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
    pthread_t saver;

    struct pg_region *next, **link; /* of all regions, for fork */
    struct pg_stone *stone;         /* what a forked child says of it (inherited.c) */
    int inherited;                  /* it is the parent's */
    /* Of an inherited one (heirs.c), which is mapped already: what was first opened. Else NULL. */
    const struct pg_region *origin;
};

/* A moment after another, at the end of time at the latest. */
static inline uint64_t pg_later(uint64_t moment, uint64_t nanoseconds)
{
    return moment + nanoseconds < moment ? UINT64_MAX : moment + nanoseconds;
}

/* Wait for the state of a block to change, for a slice of time at most: look again. 0, or
 * -PG_NOT_NOW: it is late. Drops the lock. */
int pg_wait_changed(struct pg_region *region, uint64_t until);

/* Start a thread that takes no signals. 0 or -errno. Needs no lock. */
int pg_start_thread(pthread_t *thread, const char *name, void *(*function)(void *), void *argument);

/* Sleep without the lock. Drops the lock. */
void pg_pause(struct pg_region *region, uint64_t nanoseconds);

static inline uint64_t pg_block_address(const struct pg_region *region, uint32_t number)
{
    return region->base + number * region->block_size;
}

/* Frames of blocks that come and go; UINT32_MAX: there is no limit. */
static inline uint32_t pg_frames_shared(const struct pg_region *region)
{
    return region->limited ? region->frames.limit - region->pinned : UINT32_MAX;
}

/* Whether there are so few frames that one instruction may need most of them. */
static inline int pg_is_tight(const struct pg_region *region)
{
    return pg_frames_shared(region) < PG_TIGHT;
}

static inline int pg_is_pinned(const struct pg_region *region, uint32_t number)
{
    return region->pins && region->pins[number];
}

static inline int pg_writable(const struct pg_region *region)
{
    return region->mode != PG_READ;
}

/* region.c: have all threads end; for one that has the descriptors. */
void pg_stop(struct pg_region *region);

/* setup.c: adapt to how many frames are pinned. */
void pg_share_out(struct pg_region *region);

/* setup.c: all that a region consists of, and its threads. */
int pg_set_up(struct pg_region *region, struct pg_opening *opening);

static inline uint64_t pg_spilled_bytes(const struct pg_region *region)
{
    return (region->nblocks / 64 + 1) * sizeof *region->spilled;
}

/* forks.c */

/* Make the region's sentinel, and have a forked child close it: none is forked in between that
 * would keep it open. Neither wants the lock. */
int pg_enter(struct pg_region *region);
void pg_leave(struct pg_region *region);

/* The same while threads of the region still run, which may have something to say. What is returned
 * is for pg_engine_end. */
struct pg_engine *pg_abandon(struct pg_region *region);

/* calls.c */

/* Wait for a flag that is set with the lock of calls, which is not held here, and with `asking` ask
 * the program now and then. 0, or -PG_INTERRUPTED: also in a child that was forked meanwhile. */
int pg_await(struct pg_region *region, const int *done, int asking);

/* Whether the call that this thread makes, if it makes one, is to end as soon as it can. */
int pg_is_called_off(void);

int pg_start_caller(struct pg_region *region);
void pg_call_stop(struct pg_region *region);
int pg_do_flush(struct pg_region *region);

/* Until nobody else flushes. 0, or -PG_INTERRUPTED. Drops the lock. */
int pg_begin_flush(struct pg_region *region);
void pg_end_flush(struct pg_region *region);

/* Have the store make durable what was written, for one that has the lock for flushes. 0 or -errno;
 * then `sync_lost` says whether it can still be written again. Drops the lock. */
int pg_sync_all(struct pg_region *region);
int pg_do_evict(struct pg_region *region, uint64_t offset, uint64_t length);
int pg_do_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait);
int pg_do_store_stats(struct pg_region *region, char text[PG_TEXT]);

/* Have the store keep nothing of blocks that are not in memory; pg_forget asks a thread that has
 * the descriptors for it. */
int pg_do_forget(struct pg_region *region, uint64_t offset, uint64_t length);
int pg_forget(struct pg_region *region, uint64_t offset, uint64_t length);
int pg_do_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write);

/* plain.c: for one that has the descriptors. */
int pg_do_engage(struct pg_region *region);

static inline int pg_is_plain(const struct pg_region *region)
{
    return __atomic_load_n(&region->plain, __ATOMIC_ACQUIRE);
}

/* Have a flush made without waiting for it; `saving` receives the result. 0 or -errno. */
struct pg_saving;
int pg_post_flush(struct pg_region *region, struct pg_saving *saving);

/* ending.c */

/* A flush that was asked for has ended: 0 or -errno. Needs no lock. */
void pg_note_saved(struct pg_saving *saving, const struct pg_region *region, int error);

/* In the child of a fork SIGTERM does what it does without us. */
void pg_ending_forked(void);

/* forks.c: no child is forked in between, by one who knows. Before the lock of a region. */
void pg_hold_forks(void);
void pg_release_forks(void);

/* forks.c: for all regions of the process, while none can go. */
void pg_for_all_regions(void (*function)(struct pg_region *region, void *argument), void *argument);

/* flush.c */

/* Write dirty blocks from entry `first` to `end`, `most` of them, and leave out those that others
 * hold; for one that has the lock for flushes. */
struct pg_written {
    pg_entry next;    /* so far it has come */
    unsigned written; /* blocks */
    int missed;       /* some could not be written now */
    uint32_t failed;  /* the last of those */
};
struct pg_written pg_write_some(struct pg_region *region, pg_entry first, pg_entry end,
                                unsigned most);

/* background.c */

/* The thread that writes back what has been changed for a while. */
void *pg_write_in_background(void *region);

/* A batch of it. Returns when to go on. Needs no lock. */
uint64_t pg_sweep(struct pg_region *region);

/* refuse.c */

/* A store to a page of a region of mode "r": it raises SIGBUS, or EFAULT from a system call. */
void pg_refuse(struct pg_region *region, uint64_t address);

/* Unpoison such pages for readers; return when to do it next. */
void pg_lift_refusal(struct pg_region *region);
uint64_t pg_next_lift(const struct pg_region *region);

/* lost.c */

/* Nobody is to touch the region any more: the program has closed the sentinel, or `error` is why
 * faults cannot be received. */
void pg_lose(struct pg_region *region, int error);

/* Save what is dirty. -PG_LOST when all is saved, or why it is not. Needs no lock. */
int pg_save_lost(struct pg_region *region);

/* As pg_bring_in, into a region that is lost: nobody is to touch it, and the kernel puts pages only
 * where somebody may. */
int pg_bring_in_lost(struct pg_region *region, uint64_t address, uint64_t slot);

static inline int pg_is_lost(const struct pg_region *region)
{
    return __atomic_load_n(&region->lost, __ATOMIC_ACQUIRE);
}

/* faults.c: the event loop, and one fault. */
void pg_serve(struct pg_region *region);

/* Have the event loop look at when jobs are overdue. */
void pg_look_at_jobs(const struct pg_region *region);

/* flights.c */

/* How many there may be. 0 or -ENOMEM. */
int pg_flights_start(struct pg_region *region);

/* Whether a block is to be had by pg_take_off, without looking for it in the page cache. */
int pg_is_cold(const struct pg_region *region);

/* Have a FILLING block read into its slot, without waiting. -PG_NOT_NOW: by a worker. */
int pg_take_off(struct pg_region *region, struct pg_job job, int fresh);

/* fill.c */

/* A slot to read a block into, at the expense of others if need be. PG_NO_SLOT: not now. Drops the
 * lock.
 */
uint16_t pg_slot_for_block(struct pg_region *region);

/* An empty outgoing slot to move a block into; PG_NO_SLOT: not now. */
uint16_t pg_slot_to_move_into(struct pg_region *region);

/* Give back a slot that was taken for a block; `whole` if it is known to be full. */
void pg_slot_back(struct pg_region *region, uint16_t slot, int whole);

/* Read blocks that follow each other; the lock is not held. */
int pg_read_blocks(struct pg_region *region, uint32_t first, const uint16_t *slots, size_t count,
                   int nowait);

/* Make room for one more frame, with `write` by writing if need be. 0 or -PG_NOT_NOW.
 * Drops the lock. */
int pg_make_room(struct pg_region *region, int write);

/* Whether a helper has the store. */
static inline int pg_has_helper(const struct pg_region *region)
{
    return region->store.channel != NULL;
}

/* Put a FILLING block that has been read into the region. 0 or -errno: then the slot is still the
 * caller's, and has the block, or what the region has not of one that is dirty now; or it was given
 * up, and is PG_NO_SLOT: the block is to be read again. With `unshown`, which is
 * set then, the caller calls pg_show for what was moved to a read-only region, before it drops the
 * lock. Drops the lock. */
int pg_install(struct pg_region *region, pg_entry entry, uint16_t *slot, int *unshown);

/* Fill a FILLING block for a thread that waits: now if the store need not wait for a device, else
 * by a worker. Drops the lock. */
void pg_fill(struct pg_region *region, pg_entry entry, uint64_t began);

/* The answer to what pg_fill has asked a helper for, or that there is none. Drops the lock. */
void pg_take_answer(struct pg_region *region);

/* Whether a block was given up that a helper may still put into the region. */
static inline int pg_is_late(const struct pg_region *region, uint32_t number)
{
    return region->asked_late && region->asked.number == number;
}

/* Do a job, or put it off. Drops the lock. */
void pg_do_job(struct pg_region *region, struct pg_job job);

/* failing.c */

/* In words, why a store failed. */
const char *pg_cause_of(int code);

/* How long to wait after so many tries: 1, 2, 4 ... ms, at most a quarter of a second. */
uint64_t pg_backoff(uint64_t tries);

/* When a block that a thread waits for since `began` should have been had, or given up. */
uint64_t pg_overdue(const struct pg_region *region, uint64_t began);

/* Try again later, or give the block up: whoever touches it gets SIGBUS. `starved`: for want of a
 * frame, not of the store. Drops the lock. */
void pg_put_off(struct pg_region *region, struct pg_job job, int error, uint64_t pause,
                int starved);

/* Map a WRITING block that a thread waits for, or put that off. */
void pg_await_written(struct pg_region *region, struct pg_job job);

/* Take the poison of a block away that was given up for want of a frame, once there is one. Lets
 * go.
 */
void pg_recover(struct pg_region *region, struct pg_job job);

/* pin.c */
void pg_pins_free(struct pg_region *region);

/* A page of a pinned block is missing: fill it in. Drops the lock. */
void pg_refill(struct pg_region *region, uint64_t address);

/* Copy a pinned block to a slot, while it stays where it is. 0 or -errno. Drops the lock. */
struct pg_out;
int pg_copy_pinned(struct pg_region *region, struct pg_out *out);

/* policy.c */
void pg_policy_init(struct pg_region *region, uint32_t frames);
/* A block to leave, which may be dirty with `write`. PG_NONE: there is none, or without `only` none
 * whose writing would not begin with waiting for an earlier one. */
pg_entry pg_victim(struct pg_region *region, int write, int only);
void pg_enlist(struct pg_region *region, pg_entry entry, int sequential);

/* Between which bounds it may be learnt how many blocks that were needed once stay. */
static inline uint32_t pg_least_once(uint32_t frames)
{
    return frames / 20;
}

static inline uint32_t pg_most_once(uint32_t frames)
{
    return frames - frames / 8;
}

/* A touch has found a block on standby. */
void pg_note_rescued(struct pg_region *region, pg_entry entry);

/* ghosts.c */
int pg_ghosts_start(struct pg_region *region);
void pg_note_evicted(struct pg_region *region, pg_entry entry);

/* A block is needed that is not in memory. Whether it was in it lately, and used again. */
int pg_note_missed(struct pg_region *region, uint32_t number, int sequential);

/* prefetch.c */

/* Read a block that could not be read ahead, with all patience, and wait for it. 0, or -EIO: it
 * cannot be read. Drops the lock. */
int pg_insist(struct pg_region *region, uint32_t number);

/* Blocks that can be read at once: more would only push out the first of them. */
uint64_t pg_most_at_once(struct pg_region *region);

/* record.c */

/* A block is needed: if that is recorded, and is for the first time, it is noted. */
void pg_note_needed(struct pg_region *region, uint32_t number);
void pg_record_free(struct pg_region *region);

/* ahead.c */

/* Learn from a touch of a block that was not mapped. Whether it belongs to a long sequence. */
int pg_note_touch(struct pg_region *region, uint32_t number);

/* Read blocks, all that can be, and wait for them. 0, or the first error. Needs no lock. */
int pg_read_range(struct pg_region *region, uint64_t first, uint64_t end);

/* Read a part of the first request. Drops the lock. */
void pg_read_ahead(struct pg_region *region);

/* Read the beginning of a request of the caller's own, as one read. Returns how many blocks that
 * were; 0 without a frame for them, and the request has ended. Drops the lock. */
uint32_t pg_read_part(struct pg_region *region, struct pg_request *request, int *error);

/* Queue a request. -PG_NOT_NOW: there are too many. */
int pg_put_request(struct pg_region *region, struct pg_request request);

/* A worker ends: unless another one is still reading, which will do this, nobody reads the rest. */
void pg_drop_requests(struct pg_region *region);

/* work.c */
void *pg_work(void *region);

/* The same for a thread of the pool, while there is something to do. Needs no lock. */
void pg_work_shared(struct pg_region *region);

/* There is something for a worker. */
void pg_call_worker(struct pg_region *region);

/* A thread may be in I/O from here to there, and is not to be given up for the time in which this
 * process was stopped meanwhile. */
void pg_begin_work(struct pg_region *region);
void pg_end_work(struct pg_region *region);

/* Whether any is, or will be. */
int pg_is_working(const struct pg_region *region);

/* Ask for dirty blocks to be written, and be woken when some are. */
void pg_want_writes(struct pg_region *region);

/* A frame is free: wake those that lack one. */
void pg_wake_starved(struct pg_region *region);

/* Give up jobs that are long overdue: the store blocks the workers. Drops the lock. */
void pg_expire_jobs(struct pg_region *region);

/* When that will be necessary; UINT64_MAX: never, as things are. */
uint64_t pg_next_expiry(const struct pg_region *region);

/* Room for jobs; for those that have a slot there is always some. */
int pg_jobs_start(struct pg_region *region);

/* Hand a job over. -PG_NOT_NOW: no memory for one without a slot. */
int pg_put_job(struct pg_region *region, struct pg_job job);

/* report.c */

/* A block that a thread waits for since `began` is there. */
void pg_note_filled(struct pg_region *region, uint32_t number, uint64_t began);
void pg_note_failure(struct pg_region *region, int operation, uint32_t number, int error,
                     uint64_t tries);

#endif

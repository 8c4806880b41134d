/* What workers do, and what becomes of blocks that cannot be had. What region.h says of locks
 * holds. */
#ifndef PAGEMOVE_PAGER_ENGINE_WORK_H
#define PAGEMOVE_PAGER_ENGINE_WORK_H

#include "pager/engine/region.h"

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
void pg_frame_available(struct pg_region *region);

/* Give up jobs that are long overdue: the store blocks the workers. Drops the lock. */
void pg_expire_jobs(struct pg_region *region);

/* When that will be necessary; UINT64_MAX: never, as things are. */
uint64_t pg_next_expiry(const struct pg_region *region);

/* Hand a job over. -PG_NOT_NOW: no memory for one without a slot. */
int pg_put_job(struct pg_region *region, struct pg_job job);

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

/* Take the poison of a block away that was given up for want of a frame, once there is one. Drops
 * the lock.
 */
void pg_recover(struct pg_region *region, struct pg_job job);

/* report.c */

/* A block that a thread waits for since `began` is there. */
void pg_note_filled(struct pg_region *region, uint32_t number, uint64_t began);
void pg_note_failure(struct pg_region *region, int operation, uint32_t number, int error,
                     uint64_t tries);

int pg_do_store_stats(struct pg_region *region, char text[PG_TEXT]);

#endif

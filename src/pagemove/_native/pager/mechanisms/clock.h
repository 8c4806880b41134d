/* The time of deadlines: monotonic, less the time in which nothing of this process could run.
 *
 * A process that was stopped (^Z, a batch system, a frozen cgroup, a debugger, a paused guest)
 * finds all its deadlines over when it goes on, though nobody was asked anything meanwhile. So
 * whoever waits with a deadline waits in slices, and each slice is a tick; where ticks are due and
 * none came for much longer than a slice, that time has not run. A store that does not answer while
 * this process ticks still runs out of time, and so does one whose helper alone is stopped.
 */
#ifndef PAGEMOVE_PAGER_MECHANISMS_CLOCK_H
#define PAGEMOVE_PAGER_MECHANISMS_CLOCK_H

#include <poll.h>
#include <pthread.h>
#include <stdint.h>

/* Nanoseconds. */
uint64_t pg_now(void);

/* A moment after another, at the end of time at the latest. */
static inline uint64_t pg_later(uint64_t moment, uint64_t nanoseconds)
{
    return moment + nanoseconds < moment ? UINT64_MAX : moment + nanoseconds;
}

/* Wait on a condition (of CLOCK_MONOTONIC) until a time, or for a slice: the caller looks at what
 * it waits for, and at the time, again. */
void pg_wait_until(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t when);

/* As pg_wait_until, for all of the time, and without ticking: where nothing is to be given up in
 * the end, time that has not run may count, and nobody need wake up ten times a second. */
void pg_sleep_until(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t when);

/* As poll(2), until a time: 0 then. Until UINT64_MAX: for as long as it takes. */
int pg_poll_until(struct pollfd *polled, nfds_t count, uint64_t when);

void pg_sleep(uint64_t nanoseconds);

/* Between these somebody ticks: this thread, or another that it has woken for that. Time before, in
 * which nobody did, is no gap. Returns the time. */
uint64_t pg_begin_ticking(void);
void pg_end_ticking(void);

/* In the child of a fork nobody waits. */
void pg_clock_forked(void);

#endif

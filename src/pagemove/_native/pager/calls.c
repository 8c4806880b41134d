/* Calls of the program that need the pager's descriptors: made by threads that have them.
 *
 * Who asks for one may stop waiting (Control-C), and the call is called off: one that has not begun
 * never does, another ends between two blocks, once the store has answered what it was asked last.
 * So a call belongs to both threads, and whoever is done with it last frees it. */
#define _GNU_SOURCE
#include "pager/calls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pager/engine/faults.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/interruption.h"
#include "pager/mechanisms/threads.h"
#include "pager/shared.h"

/* ns between questions whether to go on waiting. */
#define PATIENCE 40000000

/* For a slice of time at most. Wants the lock of calls. */
static int wait_a_little(struct pg_region *region, const int *done)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PATIENCE;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    while (!*done)
        if (pthread_cond_timedwait(&region->answered, &region->calls_lock, &until) == ETIMEDOUT)
            break;
    return *done;
}

int pg_await(struct pg_region *region, const int *done, int asking)
{
    uint64_t process = region->carried_in;
    int is_done;

    for (;;) {
        pthread_mutex_lock(&region->calls_lock);
        is_done = wait_a_little(region, done);
        pthread_mutex_unlock(&region->calls_lock);
        if (is_done)
            return 0;
        if (asking && pg_may_wait_no_longer())
            return -PG_INTERRUPTED;
        /* It may have forked: nobody answers here, and the lock is as it was at that moment. */
        if (region->inherited || region->carried_in != process)
            return -PG_INTERRUPTED;
    }
}

static void *serve_calls(void *argument);

/* There is always one that waits, so that no call waits for another. Wants the lock of calls. */
int pg_start_caller(struct pg_region *region)
{
    int error;

    if (region->callers == PG_CALLERS)
        return -PG_NOT_NOW;
    error =
        pg_start_thread(&region->caller[region->callers], "pagemove-calls", serve_calls, region);
    region->callers += !error;
    region->is_open |= !error;
    return error;
}

static int is_stopped(const struct pg_region *region)
{
    return __atomic_load_n(&region->stop, __ATOMIC_ACQUIRE);
}

/* Free a call that nobody waits for. */
static void abandon(struct pg_region *region, struct pg_call *call)
{
    if (call->undo && call->done && !call->result)
        call->undo(region, call);
    free(call->runs);
    free(call);
}

/* Make a call. Drops the lock of calls. */
static void make(struct pg_region *region, struct pg_call *call)
{
    pthread_mutex_unlock(&region->calls_lock);
    pg_end_when(&call->called_off);
    /* The process may be stopped before the event loop, which may be waiting without ticking, has
     * come to that. */
    pg_begin_ticking();
    pg_begin_work(region);
    pg_look_at_jobs(region);
    call->result = call->function(region, call);
    pg_end_work(region);
    pg_end_ticking();
    pg_end_when(NULL);
    if (call->saving)
        pg_note_saved(call->saving, region, call->result);
    pthread_mutex_lock(&region->calls_lock);
    call->done = 1;
    if (call->posted || call->called_off) {
        region->posted -= call->hint;
        pthread_mutex_unlock(&region->calls_lock);
        abandon(region, call);
        pthread_mutex_lock(&region->calls_lock);
    } else {
        pthread_cond_broadcast(&region->answered);
    }
}

static void *serve_calls(void *argument)
{
    struct pg_region *region = argument;
    struct pg_call *call;

    pthread_mutex_lock(&region->calls_lock);
    region->idle_callers++;
    while (region->calls || !is_stopped(region)) {
        call = region->calls;
        if (region->ending && !is_stopped(region)) {
            pthread_mutex_unlock(&region->calls_lock);
            pg_stop(region);
            pthread_mutex_lock(&region->calls_lock);
        } else if (!call) {
            pthread_cond_wait(&region->called, &region->calls_lock);
        } else {
            region->calls = call->next;
            if (!--region->idle_callers && !is_stopped(region))
                pg_start_caller(region);
            make(region, call);
            region->idle_callers++;
        }
    }
    region->idle_callers--;
    pthread_mutex_unlock(&region->calls_lock);
    return NULL;
}

void pg_make_call(struct pg_region *region)
{
    struct pg_call *call;

    pthread_mutex_lock(&region->calls_lock);
    call = region->calls;
    if (region->unopened) {
        region->unopened = 0;
        pthread_mutex_unlock(&region->calls_lock);
        pg_open_shared(region);
        pthread_mutex_lock(&region->calls_lock);
    } else if (call) {
        /* It may have been called off, and then there is none. */
        region->calls = call->next;
        make(region, call);
    }
    pthread_mutex_unlock(&region->calls_lock);
}

/* Take a call that has not begun out of the queue. Wants the lock of calls. */
static int unqueue(struct pg_region *region, const struct pg_call *call)
{
    struct pg_call **at = &region->calls;

    while (*at && *at != call)
        at = &(*at)->next;
    if (!*at)
        return 0;
    *at = call->next;
    return 1;
}

static void call_off(struct pg_region *region, struct pg_call *call)
{
    int is_over;

    pthread_mutex_lock(&region->calls_lock);
    is_over = call->done || unqueue(region, call);
    if (!is_over)
        __atomic_store_n(&call->called_off, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&region->calls_lock);
    if (is_over) {
        abandon(region, call);
        return;
    }
    /* It may be waiting for what others do. */
    pthread_mutex_lock(&region->lock);
    pthread_cond_broadcast(&region->changed);
    pthread_mutex_unlock(&region->lock);
}

/* Wants the lock of calls. */
static void put(struct pg_region *region, struct pg_call *call)
{
    struct pg_call **last = &region->calls;

    while (*last)
        last = &(*last)->next;
    *last = call;
    if (region->engine)
        pg_pool_put(region, PG_TASK_CALL);
    else
        pthread_cond_signal(&region->called);
}

static struct pg_call *copy_call(const struct pg_call *wanted)
{
    struct pg_call *call = malloc(sizeof *call);
    size_t bytes = wanted->run_count * sizeof *wanted->runs;

    if (!call)
        return NULL;
    *call = *wanted;
    call->runs = NULL;
    if (bytes) {
        call->runs = malloc(bytes);
        if (!call->runs) {
            free(call);
            return NULL;
        }
        memcpy(call->runs, wanted->runs, bytes);
    }
    return call;
}

int pg_run_call(struct pg_region *region, const struct pg_call *wanted, char *text, int asking)
{
    struct pg_call *call = copy_call(wanted);
    uint64_t process = region->carried_in;
    int result;

    if (!call)
        return -ENOMEM;
    pthread_mutex_lock(&region->calls_lock);
    put(region, call);
    pthread_mutex_unlock(&region->calls_lock);
    if (pg_await(region, &call->done, asking)) {
        if (!region->inherited && region->carried_in == process)
            call_off(region, call);
        return -PG_INTERRUPTED;
    }
    result = call->result;
    if (text)
        memcpy(text, call->text, PG_TEXT);
    free(call->runs);
    free(call);
    return result;
}

int pg_post_call(struct pg_region *region, const struct pg_call *wanted)
{
    struct pg_call *call = copy_call(wanted);
    int error = call ? 0 : -ENOMEM;

    if (error)
        return error;
    pthread_mutex_lock(&region->calls_lock);
    /* One that is being opened has nothing to save; one that is being closed has been flushed. Too
     * many that nobody waits for would keep others waiting. */
    if (!region->is_open || region->ending || is_stopped(region)) {
        error = -ESHUTDOWN;
    } else if (call->hint && region->posted == PG_POSTED) {
        error = -PG_NOT_NOW;
    } else {
        region->posted += call->hint;
        put(region, call);
    }
    pthread_mutex_unlock(&region->calls_lock);
    if (error)
        abandon(region, call);
    return error;
}

void pg_call_stop(struct pg_region *region)
{
    pthread_mutex_lock(&region->calls_lock);
    __atomic_store_n(&region->ending, 1, __ATOMIC_RELEASE);
    pthread_cond_signal(&region->called);
    pthread_mutex_unlock(&region->calls_lock);
    if (region->engine) {
        pg_stop(region);
        pg_pool_close(region);
    }
}

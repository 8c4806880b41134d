/* Calls of the program that need the pager's descriptors: made by threads that have them.
 *
 * Who asks for one may stop waiting (Control-C), and the call is called off: one that has not begun
 * never does, another ends between two blocks, once the store has answered what it was asked last.
 * So a call belongs to both threads, and whoever is done with it last frees it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pager/engine/arriving.h"
#include "pager/engine/faults.h"
#include "pager/engine/gather.h"
#include "pager/engine/lease.h"
#include "pager/engine/leaving.h"
#include "pager/engine/pin.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/threads.h"
#include "pager/pager.h"
#include "pager/shared.h"

/* ns between questions whether to go on waiting. */
#define PATIENCE 40000000

struct pg_call {
    int (*function)(struct pg_region *region, struct pg_call *call);
    uint64_t offset, length;
    struct pg_run *runs; /* to be pinned or read; its own */
    size_t run_count;
    int write, result, done, called_off;
    int posted;               /* no thread waits */
    uint32_t hint;            /* one that may be left out */
    struct pg_saving *saving; /* receives the result, or NULL */
    struct pg_call *next;
    char text[PG_TEXT]; /* what the store says of itself */
};

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
        if (region->inherited)
            return -PG_INTERRUPTED;
    }
}

static void *serve_calls(void *argument);
static int pin(struct pg_region *region, struct pg_call *call);

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

/* Free a call that nobody waits for. What it has pinned nobody would unpin. */
static void abandon(struct pg_region *region, struct pg_call *call)
{
    if (call->function == pin && call->done && !call->result)
        pg_unpin(region, call->runs, call->run_count);
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

/* Have a call made, and wait for it. `text`: NULL, or where to put what it says. */
static int run_asking(struct pg_region *region, const struct pg_call *wanted, char *text,
                      int asking)
{
    struct pg_call *call = copy_call(wanted);
    int result;

    if (!call)
        return -ENOMEM;
    pthread_mutex_lock(&region->calls_lock);
    put(region, call);
    pthread_mutex_unlock(&region->calls_lock);
    if (pg_await(region, &call->done, asking)) {
        if (!region->inherited)
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

static int run(struct pg_region *region, const struct pg_call *wanted, char *text)
{
    return run_asking(region, wanted, text, 1);
}

static int flush(struct pg_region *region, struct pg_call *call)
{
    int error = pg_is_lost(region) ? -PG_LOST : pg_do_flush(region);

    (void)call;
    /* Also one that has ended because of that. */
    return error && pg_is_lost(region) ? pg_save_lost(region) : error;
}

static int evict(struct pg_region *region, struct pg_call *call)
{
    return pg_is_lost(region) ? -EBADF : pg_do_evict(region, call->offset, call->length);
}

static int prefetch(struct pg_region *region, struct pg_call *call)
{
    if (pg_is_plain(region))
        return 0; /* nothing of it is elsewhere */
    return pg_is_lost(region) ? -EBADF : pg_do_prefetch(region, call->offset, call->length, 1);
}

static int pin(struct pg_region *region, struct pg_call *call)
{
    /* It is to stay also when the region is engaged. */
    int error = pg_is_lost(region) ? -EBADF : pg_do_engage(region);

    return error ? error : pg_do_pin(region, call->runs, call->run_count, call->write);
}

static int gather(struct pg_region *region, struct pg_call *call)
{
    if (pg_is_plain(region))
        return 0;
    return pg_is_lost(region) ? -EBADF
                              : pg_do_gather(region, call->runs, call->run_count, !call->posted);
}

static int store_stats(struct pg_region *region, struct pg_call *call)
{
    return pg_do_store_stats(region, call->text);
}

static int forget(struct pg_region *region, struct pg_call *call)
{
    return pg_is_lost(region) ? -EBADF : pg_do_forget(region, call->offset, call->length);
}

int pg_discard_blocks(struct pg_region *region, uint64_t offset, uint64_t length)
{
    struct pg_call wanted = {.function = forget, .offset = offset, .length = length};
    int stored, error = pg_drop_blocks(region, offset, length, &stored);

    /* Signal handlers are not run: the caller may be freeing an object. */
    return error || !stored ? error : run_asking(region, &wanted, NULL, 0);
}

static int engage(struct pg_region *region, struct pg_call *call)
{
    (void)call;
    return pg_is_lost(region) ? -EBADF : pg_do_engage(region);
}

int pg_engage(struct pg_region *region)
{
    if (!pg_is_plain(region))
        return 0;
    return run_asking(region, &(struct pg_call){.function = engage}, NULL, 0);
}

int pg_flush(struct pg_region *region)
{
    return run(region, &(struct pg_call){.function = flush}, NULL);
}

static int shrink(struct pg_region *region, struct pg_call *call)
{
    (void)call;
    pg_do_shrink(region);
    return 0;
}

/* Have a call made that nobody waits for. 0 or -errno; -PG_NOT_NOW: it was left out. */
static int post(struct pg_region *region, const struct pg_call *wanted)
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

int pg_post_flush(struct pg_region *region, struct pg_saving *saving)
{
    return post(region, &(struct pg_call){.function = flush, .posted = 1, .saving = saving});
}

int pg_post_shrink(struct pg_region *region)
{
    return post(region, &(struct pg_call){.function = shrink, .posted = 1});
}

int pg_evict(struct pg_region *region, uint64_t offset, uint64_t length)
{
    return run(region, &(struct pg_call){.function = evict, .offset = offset, .length = length},
               NULL);
}

int pg_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait)
{
    /* To ask for blocks takes no descriptor, and should take no time. */
    if (!wait && !pg_is_plain(region))
        return pg_is_lost(region) ? -EBADF : pg_do_prefetch(region, offset, length, 0);
    return run(region, &(struct pg_call){.function = prefetch, .offset = offset, .length = length},
               NULL);
}

int pg_gather(struct pg_region *region, const struct pg_run *runs, size_t count, int wait)
{
    struct pg_call call = {.function = gather,
                           .runs = (struct pg_run *)runs,
                           .run_count = count,
                           .posted = !wait,
                           .hint = !wait};
    int error;

    if (pg_is_lost(region))
        return -EBADF;
    if (!pg_note_used(region, runs, count))
        return 0;
    if (wait)
        return run(region, &call, NULL);
    error = post(region, &call);
    return error == -PG_NOT_NOW || error == -ESHUTDOWN ? 0 : error;
}

int pg_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write)
{
    return run(
        region,
        &(struct pg_call){
            .function = pin, .runs = (struct pg_run *)runs, .run_count = count, .write = write},
        NULL);
}

int pg_store_stats(struct pg_region *region, char text[PG_TEXT])
{
    return run(region, &(struct pg_call){.function = store_stats}, text);
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

/* Calls of the program that need the pager's descriptors: made by threads that have them. */
#include <errno.h>
#include <stdlib.h>

#include "region.h"

struct pg_call {
    int (*function)(struct pg_region *region, struct pg_call *call);
    uint64_t offset, length;
    char *text;
    const struct pg_run *runs;
    size_t run_count;
    int write, result, done;
    struct pg_saving *saving; /* to be told of the result: nobody waits, and the call is its own */
    struct pg_call *next;
};

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
    return error;
}

static void *serve_calls(void *argument)
{
    struct pg_region *region = argument;
    struct pg_call *call;

    pthread_mutex_lock(&region->calls_lock);
    region->idle_callers++;
    while (region->calls || !__atomic_load_n(&region->stop, __ATOMIC_ACQUIRE)) {
        call = region->calls;
        if (!call) {
            pthread_cond_wait(&region->called, &region->calls_lock);
            continue;
        }
        region->calls = call->next;
        if (!--region->idle_callers && !__atomic_load_n(&region->stop, __ATOMIC_ACQUIRE))
            pg_start_caller(region);
        pthread_mutex_unlock(&region->calls_lock);
        call->result = call->function(region, call);
        if (call->saving)
            pg_note_saved(call->saving, region, call->result);
        pthread_mutex_lock(&region->calls_lock);
        region->idle_callers++;
        if (call->saving) {
            free(call);
            continue;
        }
        call->done = 1;
        pthread_cond_broadcast(&region->answered);
    }
    region->idle_callers--;
    pthread_mutex_unlock(&region->calls_lock);
    return NULL;
}

/* Wants the lock of calls. */
static void put(struct pg_region *region, struct pg_call *call)
{
    struct pg_call **last = &region->calls;

    while (*last)
        last = &(*last)->next;
    *last = call;
    pthread_cond_signal(&region->called);
}

static int call(struct pg_region *region, struct pg_call *call)
{
    pthread_mutex_lock(&region->calls_lock);
    put(region, call);
    while (!call->done)
        pthread_cond_wait(&region->answered, &region->calls_lock);
    pthread_mutex_unlock(&region->calls_lock);
    return call->result;
}

static int flush(struct pg_region *region, struct pg_call *call)
{
    (void)call;
    return pg_is_lost(region) ? pg_save_lost(region) : pg_do_flush(region);
}

static int evict(struct pg_region *region, struct pg_call *call)
{
    return pg_is_lost(region) ? -EBADF : pg_do_evict(region, call->offset, call->length);
}

static int prefetch(struct pg_region *region, struct pg_call *call)
{
    return pg_is_lost(region) ? -EBADF : pg_do_prefetch(region, call->offset, call->length, 1);
}

static int pin(struct pg_region *region, struct pg_call *call)
{
    return pg_is_lost(region) ? -EBADF
                              : pg_do_pin(region, call->runs, call->run_count, call->write);
}

static int store_stats(struct pg_region *region, struct pg_call *call)
{
    return pg_do_store_stats(region, call->text);
}

static int stop(struct pg_region *region, struct pg_call *call)
{
    (void)call;
    pg_stop(region);
    return 0;
}

int pg_flush(struct pg_region *region)
{
    return call(region, &(struct pg_call){.function = flush});
}

int pg_post_flush(struct pg_region *region, struct pg_saving *saving)
{
    struct pg_call *call = calloc(1, sizeof *call);
    int error = call ? 0 : -ENOMEM;

    if (error)
        return error;
    *call = (struct pg_call){.function = flush, .saving = saving};
    pthread_mutex_lock(&region->calls_lock);
    /* One that is being opened has nothing to save; one that is being closed has been flushed. */
    if (!region->callers || __atomic_load_n(&region->stop, __ATOMIC_ACQUIRE))
        error = -ESHUTDOWN;
    else
        put(region, call);
    pthread_mutex_unlock(&region->calls_lock);
    if (error)
        free(call);
    return error;
}

int pg_evict(struct pg_region *region, uint64_t offset, uint64_t length)
{
    return call(region, &(struct pg_call){.function = evict, .offset = offset, .length = length});
}

int pg_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait)
{
    /* To ask for blocks takes no descriptor, and should take no time. */
    if (!wait)
        return pg_is_lost(region) ? -EBADF : pg_do_prefetch(region, offset, length, 0);
    return call(region,
                &(struct pg_call){.function = prefetch, .offset = offset, .length = length});
}

int pg_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write)
{
    return call(region, &(struct pg_call){
                            .function = pin, .runs = runs, .run_count = count, .write = write});
}

int pg_store_stats(struct pg_region *region, char text[PG_TEXT])
{
    return call(region, &(struct pg_call){.function = store_stats, .text = text});
}

void pg_call_stop(struct pg_region *region)
{
    call(region, &(struct pg_call){.function = stop});
}

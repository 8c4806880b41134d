/* The threads that do what may have to wait, for all regions over files.
 *
 * One is always idle, and starts another before it does anything: so nothing waits for a thread.
 * Reads and writes of a file are limited to a few at a time in all, and two in each region. If the
 * few make no progress, for the file of one region hangs, the idle thread goes beyond that: each
 * region that hangs keeps two threads, and delays others by a millisecond once. Calls of the
 * program are not limited so, since they wait for reads and writes. */
#include <errno.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/threads.h"
#include "pager/shared.h"

/* ns without progress until there is one thread more. */
#define STALL UINT64_C(1000000)

/* ns that a thread is kept for which there is nothing to do. */
#define IDLE UINT64_C(1000000000)

struct task {
    struct pg_region *region;
    enum pg_task kind;
};

PG_THREAD_LOCAL struct pg_engine *pg_inside;

static void *serve_pool(void *argument);

static void bury(struct pg_engine *engine)
{
    while (engine->dead) {
        struct pg_worker *worker = engine->dead;
        engine->dead = worker->next;
        pthread_join(worker->thread, NULL);
        free(worker);
    }
}

int pg_pool_spare(struct pg_engine *engine)
{
    struct pg_worker *worker;
    int error;

    if (engine->idle)
        return 0;
    bury(engine);
    worker = calloc(1, sizeof *worker);
    if (!worker)
        return -ENOMEM;
    worker->engine = engine;
    error = pg_start_thread(&worker->thread, "pagemove-work", serve_pool, worker);
    if (error) {
        free(worker);
        return error;
    }
    worker->next = engine->alive;
    engine->alive = worker;
    engine->threads++;
    engine->idle++;
    return 0;
}

static void append(struct pg_engine *engine, struct pg_region *region, enum pg_task kind)
{
    struct pg_queue *queue = &engine->queues[kind];

    region->share.next[kind] = NULL;
    *queue->last = region;
    queue->last = &region->share.next[kind];
}

static void unlink_task(struct pg_queue *queue, struct pg_region **at, enum pg_task kind)
{
    struct pg_region *region = *at;

    *at = region->share.next[kind];
    if (!*at)
        queue->last = at;
}

static int is_limited(enum pg_task kind)
{
    return kind != PG_TASK_CALL;
}

/* How many threads may do that for one region. */
static unsigned most_of(enum pg_task kind)
{
    return kind == PG_TASK_CALL ? PG_CALLERS : kind == PG_TASK_WORK ? PG_WORKERS : 1;
}

/* Wants the engine's lock. */
void pg_pool_queue(struct pg_region *region, enum pg_task kind)
{
    struct pg_engine *engine = region->engine;
    struct pg_share *share = &region->share;

    if (share->over)
        return;
    if (kind != PG_TASK_CALL && (share->queued[kind] || share->running[kind] == most_of(kind)))
        return; /* whoever is about to do it will find all there is */
    if (is_limited(kind) && !engine->queues[PG_TASK_WORK].first &&
        !engine->queues[PG_TASK_SWEEP].first)
        engine->stalled_since = pg_now();
    if (!share->queued[kind]++)
        append(engine, region, kind);
    pthread_cond_signal(&engine->changed);
}

void pg_pool_put(struct pg_region *region, enum pg_task task)
{
    pthread_mutex_lock(&region->engine->lock);
    pg_pool_queue(region, task);
    pthread_mutex_unlock(&region->engine->lock);
}

static struct task take_from(struct pg_engine *engine, enum pg_task kind)
{
    struct pg_queue *queue = &engine->queues[kind];
    struct pg_region **at = &queue->first, *region;

    while (*at && (*at)->share.running[kind] == most_of(kind))
        at = &(*at)->share.next[kind];
    region = *at;
    if (!region)
        return (struct task){NULL, kind};
    unlink_task(queue, at, kind);
    if (--region->share.queued[kind])
        append(engine, region, kind);
    return (struct task){region, kind};
}

static void sweep_at(struct pg_region *region, uint64_t when)
{
    region->share.sweep_due = region->share.closing ? UINT64_MAX : when;
    pg_enter_timed(region);
}

static int has_limited(const struct pg_engine *engine)
{
    return engine->queues[PG_TASK_WORK].first || engine->queues[PG_TASK_SWEEP].first;
}

static struct task next_task(struct pg_engine *engine, uint64_t now)
{
    struct task task = take_from(engine, PG_TASK_CALL);

    if (task.region)
        return task;
    pg_look_at_timed(engine, now);
    if (!has_limited(engine) || (engine->busy >= PG_POOL && now < engine->stalled_since + STALL))
        return task;
    task = take_from(engine, PG_TASK_WORK);
    if (!task.region)
        task = take_from(engine, PG_TASK_SWEEP);
    if (task.region)
        engine->stalled_since = now;
    return task;
}

static int is_over(const struct pg_share *share)
{
    unsigned left = share->inside;

    for (int kind = 0; kind < PG_TASKS; kind++)
        left += share->queued[kind];
    return share->closing && !left;
}

/* Nobody does anything for the region any more. Drops the lock. */
static void finish(struct pg_engine *engine, struct pg_region *region)
{
    int freed;

    region->share.over = 1;
    pg_leave_timed(region);
    pthread_mutex_unlock(&engine->lock);
    freed = pg_finish(region);
    pthread_mutex_lock(&engine->lock);
    /* Before the program knows: then it may wait for the engine to end. */
    engine->regions--;
    pthread_mutex_unlock(&engine->lock);
    if (!freed)
        pg_engine_note_gone(region);
    pthread_mutex_lock(&engine->lock);
}

/* Returns when to go on, of what goes on. */
static uint64_t do_task(struct task task)
{
    if (task.kind == PG_TASK_SWEEP)
        return pg_sweep(task.region);
    if (task.kind == PG_TASK_WORK) {
        pg_work_shared(task.region);
        return UINT64_MAX;
    }
    /* For whoever looks at what a program's threads are in. */
    prctl(PR_SET_NAME, "pagemove-calls");
    pg_make_call(task.region);
    prctl(PR_SET_NAME, "pagemove-work");
    return UINT64_MAX;
}

/* Drops the lock. */
static void run(struct pg_engine *engine, struct task task)
{
    struct pg_share *share = &task.region->share;
    uint64_t due;

    share->inside++;
    share->running[task.kind]++;
    engine->idle--;
    engine->busy += is_limited(task.kind);
    /* Without one it takes longer; the reactor tries again. */
    pg_pool_spare(engine);
    pg_wake_reactor(engine, 0);
    pthread_mutex_unlock(&engine->lock);
    due = do_task(task);
    pthread_mutex_lock(&engine->lock);
    /* Work has left when there was none any more (pg_pool_worked). */
    share->running[task.kind] -= task.kind != PG_TASK_WORK;
    if (task.kind == PG_TASK_SWEEP)
        sweep_at(task.region, due);
    engine->busy -= is_limited(task.kind);
    share->inside--;
    if (is_over(share))
        finish(engine, task.region);
    engine->idle++;
}

/* Until there may be something to do, for a slice at most where something is due. */
static void wait_for_task(struct pg_engine *engine, uint64_t idle_until)
{
    uint64_t due = engine->timed_due;

    if (has_limited(engine) && engine->stalled_since + STALL < due)
        due = engine->stalled_since + STALL;
    if (engine->idle > 1 && idle_until < due)
        due = idle_until;
    if (due == UINT64_MAX)
        pthread_cond_wait(&engine->changed, &engine->lock);
    else
        pg_sleep_until(&engine->changed, &engine->lock, due);
}

/* This thread ends, and another joins it. */
static void die(struct pg_worker *mine)
{
    struct pg_engine *engine = mine->engine;
    struct pg_worker **at = &engine->alive;

    while (*at != mine)
        at = &(*at)->next;
    *at = mine->next;
    mine->next = engine->dead;
    engine->dead = mine;
    engine->threads--;
    engine->idle--;
    pthread_cond_broadcast(&engine->left);
}

static void *serve_pool(void *argument)
{
    struct pg_worker *mine = argument;
    struct pg_engine *engine = mine->engine;
    uint64_t idle_until = pg_now() + IDLE;

    pg_inside = engine;
    pthread_mutex_lock(&engine->lock);
    while (!engine->stop) {
        uint64_t now = pg_now();
        struct task task = next_task(engine, now);
        if (task.region) {
            run(engine, task);
            idle_until = pg_now() + IDLE;
            continue;
        }
        if (engine->retired && !engine->regions)
            pg_wake_reactor(engine, 1);
        if (engine->idle > 1 && now >= idle_until)
            break;
        wait_for_task(engine, idle_until);
    }
    die(mine);
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

void pg_pool_end(struct pg_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->stop = 1;
    pthread_cond_broadcast(&engine->changed);
    while (engine->threads)
        pthread_cond_wait(&engine->left, &engine->lock);
    bury(engine);
    pthread_mutex_unlock(&engine->lock);
}

int pg_pool_hold(struct pg_region *region)
{
    int over;

    pthread_mutex_lock(&region->engine->lock);
    over = region->share.over;
    region->share.inside += !over;
    pthread_mutex_unlock(&region->engine->lock);
    return over ? -ESHUTDOWN : 0;
}

void pg_pool_release(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;

    pthread_mutex_lock(&engine->lock);
    region->share.inside--;
    /* Ending it may wait for its file: that is the pool's. */
    if (is_over(&region->share))
        pg_pool_queue(region, PG_TASK_CALL);
    pthread_mutex_unlock(&engine->lock);
}

void pg_pool_close(struct pg_region *region)
{
    pthread_mutex_lock(&region->engine->lock);
    region->share.closing = 1;
    pg_pool_queue(region, PG_TASK_CALL);
    pthread_mutex_unlock(&region->engine->lock);
}

void pg_pool_sweep_at(struct pg_region *region, uint64_t when)
{
    pthread_mutex_lock(&region->engine->lock);
    sweep_at(region, when);
    pthread_mutex_unlock(&region->engine->lock);
}

int pg_pool_is_wanted(struct pg_engine *engine)
{
    int wanted;

    pthread_mutex_lock(&engine->lock);
    wanted = engine->busy >= PG_POOL && has_limited(engine);
    pthread_mutex_unlock(&engine->lock);
    return wanted;
}

void pg_pool_worked(struct pg_region *region, uint64_t due, int again)
{
    struct pg_share *share = &region->share;

    pthread_mutex_lock(&region->engine->lock);
    share->running[PG_TASK_WORK]--;
    share->work_due = share->closing ? UINT64_MAX : due;
    pg_enter_timed(region);
    if (again)
        pg_pool_queue(region, PG_TASK_WORK);
    pthread_mutex_unlock(&region->engine->lock);
}

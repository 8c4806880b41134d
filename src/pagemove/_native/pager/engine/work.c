/* Workers: what would keep the event loop waiting. */
#include <errno.h>
#include <stdlib.h>

#include "pager/engine/leaving.h"
#include "pager/region.h"
#include "pager/shared.h"

/* ns: a worker should have given it up by then. */
#define OVERDUE UINT64_C(250000000)

/* Jobs with a slot, at most: for these nothing may be wanting, since some have the only copy of
 * what was stored. */
static uint32_t slots(const struct pg_region *region)
{
    return region->frames.outgoing_slots + region->frames.incoming_slots;
}

static int grow(struct pg_region *region, uint32_t room)
{
    struct pg_job *larger = realloc(region->jobs, room * sizeof *larger);

    if (!larger)
        return -PG_NOT_NOW;
    region->jobs = larger;
    region->job_room = room;
    return 0;
}

int pg_jobs_start(struct pg_region *region)
{
    return grow(region, slots(region) + PG_JOBS) ? -ENOMEM : 0;
}

void pg_call_worker(struct pg_region *region)
{
    if (region->engine)
        pg_pool_put(region, PG_TASK_WORK);
    else
        pthread_cond_signal(&region->work);
}

int pg_put_job(struct pg_region *region, struct pg_job job)
{
    uint32_t kept = job.slot == PG_NO_SLOT ? slots(region) : 0;

    if (region->job_count >= region->job_room - kept && grow(region, 2 * region->job_room) && kept)
        return -PG_NOT_NOW;
    region->jobs[region->job_count++] = job;
    region->starving += job.starved != 0;
    if (region->engine)
        pg_arm(region, pg_overdue(region, job.began));
    pg_call_worker(region);
    return 0;
}

/* The job that is due, or is due first; of several, the one that waits longest, since a frame comes
 * to all that lack one at the same time. -1: there is none. */
static int next_job(const struct pg_region *region)
{
    const struct pg_job *jobs = region->jobs;
    int next = -1;

    for (uint32_t i = 0; i < region->job_count; i++)
        if (next < 0 || jobs[i].not_before < jobs[next].not_before ||
            (jobs[i].not_before == jobs[next].not_before && jobs[i].began < jobs[next].began))
            next = (int)i;
    return next;
}

static struct pg_job take_job(struct pg_region *region, int which)
{
    struct pg_job job = region->jobs[which];

    region->jobs[which] = region->jobs[--region->job_count];
    region->starving -= job.starved != 0;
    job.starved = 0;
    return job;
}

void pg_want_writes(struct pg_region *region)
{
    if (region->want_writes)
        return;
    region->want_writes = 1;
    pg_call_worker(region);
}

void pg_wake_starved(struct pg_region *region)
{
    if (!region->starving)
        return;
    for (uint32_t i = 0; i < region->job_count; i++)
        if (region->jobs[i].starved)
            region->jobs[i].not_before = 0;
    pg_call_worker(region);
}

/* As many as are to be on standby. One worker at a time: if the store keeps it waiting, the other
 * still reads. */
static void write_out(struct pg_region *region)
{
    unsigned left;

    region->want_writes = 0;
    region->write_busy = 1;
    do {
        left = pg_write_out(region);
        /* Else they would ask again at once, and never drop the lock. */
        if (left)
            pg_wake_starved(region);
    } while (left && region->blocks.dirty &&
             region->blocks.length[PG_STANDBY] < region->standby_wanted);
    region->write_busy = 0;
}

uint64_t pg_overdue(const struct pg_region *region, uint64_t began)
{
    return pg_later(began, pg_later(region->timeout, OVERDUE));
}

uint64_t pg_next_expiry(const struct pg_region *region)
{
    uint64_t first = UINT64_MAX;

    for (uint32_t i = 0; i < region->job_count; i++)
        if (region->jobs[i].began < first)
            first = region->jobs[i].began;
    return first == UINT64_MAX ? first : pg_overdue(region, first);
}

/* A job that is overdue; -1: there is none. */
static int overdue_job(const struct pg_region *region)
{
    uint64_t now = pg_now();

    for (uint32_t i = 0; i < region->job_count; i++)
        if (pg_overdue(region, region->jobs[i].began) <= now)
            return (int)i;
    return -1;
}

void pg_expire_jobs(struct pg_region *region)
{
    int which;

    while ((which = overdue_job(region)) >= 0) {
        int starved = region->jobs[which].starved;
        struct pg_job job = take_job(region, which);
        if (job.slot != PG_NO_SLOT)
            pg_do_job(region, job); /* needs no worker: what it brings is in memory */
        else if (starved)
            pg_put_off(region, job, region->write_error ? region->write_error : ENOMEM, 0, 1);
        else
            pg_put_off(region, job, PG_NO_ANSWER, 0, 0);
    }
}

void pg_begin_work(struct pg_region *region)
{
    __atomic_add_fetch(&region->working, 1, __ATOMIC_RELEASE);
}

void pg_end_work(struct pg_region *region)
{
    __atomic_sub_fetch(&region->working, 1, __ATOMIC_RELEASE);
}

int pg_is_working(const struct pg_region *region)
{
    return region->request_count || __atomic_load_n(&region->working, __ATOMIC_ACQUIRE);
}

/* Do what is most urgent; 0: there is nothing to do. Drops the lock. */
static int work(struct pg_region *region, int which)
{
    int worked = 1;

    pg_begin_work(region);
    if (region->want_writes && !region->write_busy && pg_may_write(region))
        write_out(region);
    else if (which >= 0 && region->jobs[which].not_before <= pg_now())
        pg_do_job(region, take_job(region, which));
    else if (region->request_count && !region->ahead_busy)
        pg_read_ahead(region);
    else
        worked = pg_has_helper(region) && pg_read_gather(region);
    pg_end_work(region);
    return worked;
}

void *pg_work(void *argument)
{
    struct pg_region *region = argument;

    pthread_mutex_lock(&region->lock);
    while (!region->stop) {
        int which = next_job(region);
        if (work(region, which))
            continue;
        if (which >= 0)
            pg_wait_until(&region->work, &region->lock, region->jobs[which].not_before);
        else
            pthread_cond_wait(&region->work, &region->lock);
    }
    pg_drop_requests(region);
    pthread_mutex_unlock(&region->lock);
    return NULL;
}

/* Whether there is something to do for another worker too, when this one does what is first. */
static int is_more(const struct pg_region *region)
{
    unsigned found = region->want_writes && !region->write_busy && pg_may_write(region);
    uint64_t now = pg_now();

    found += region->request_count && !region->ahead_busy;
    for (uint32_t i = 0; i < region->job_count && found < 2; i++)
        found += region->jobs[i].not_before <= now;
    return found > 1;
}

void pg_work_shared(struct pg_region *region)
{
    int which, again = 0;

    pthread_mutex_lock(&region->lock);
    while (!region->stop && !again) {
        if (is_more(region))
            pg_pool_put(region, PG_TASK_WORK);
        if (!work(region, next_job(region)))
            break;
        again = pg_pool_is_wanted(region->engine);
    }
    if (region->stop)
        pg_drop_requests(region);
    which = region->stop ? -1 : next_job(region);
    pg_pool_worked(region, which < 0 ? UINT64_MAX : region->jobs[which].not_before,
                   again && !region->stop);
    pthread_mutex_unlock(&region->lock);
}

/* Workers: what would keep the event loop waiting. */
#include "pager/engine/work.h"

#include <errno.h>

#include "pager/engine/arriving.h"
#include "pager/engine/gather.h"
#include "pager/engine/leaving.h"

/* ns: a worker should have given it up by then. */
#define OVERDUE UINT64_C(250000000)

void pg_call_worker(struct pg_region *region)
{
    if (region->engine)
        region->above->call_worker(region);
    else
        pthread_cond_signal(&region->work);
}

int pg_put_job(struct pg_region *region, struct pg_job job)
{
    if (pg_jobs_put(&region->jobs, job))
        return -PG_NOT_NOW;
    if (region->engine)
        region->above->arm(region, pg_overdue(region, job.began));
    pg_call_worker(region);
    return 0;
}

void pg_want_writes(struct pg_region *region)
{
    if (region->want_writes)
        return;
    region->want_writes = 1;
    pg_call_worker(region);
}

void pg_frame_available(struct pg_region *region)
{
    if (!region->jobs.starving)
        return;
    pg_jobs_feed(&region->jobs);
    pg_call_worker(region);
}

static uint32_t frames_at_hand(const struct pg_region *region)
{
    const struct pg_frames *frames = &region->frames;
    uint32_t unused = pg_has_room(frames) ? frames->limit - frames->total : 0;

    return region->blocks.length[PG_STANDBY] + frames->full.count + unused;
}

/* As many as are to be on standby, frames included that are to be recycled: those of sequences
 * never stand by, and blocks that stay in place leave theirs unused. One worker at a time: if the
 * store keeps it waiting, the other still reads. */
static void write_out(struct pg_region *region)
{
    unsigned left;

    region->want_writes = 0;
    region->write_busy = 1;
    do {
        left = pg_write_out(region);
        /* Else they would ask again at once, and never drop the lock. */
        if (left)
            pg_frame_available(region);
    } while (left && region->blocks.dirty &&
             frames_at_hand(region) < region->policy.standby_wanted);
    region->write_busy = 0;
}

uint64_t pg_overdue(const struct pg_region *region, uint64_t began)
{
    return pg_later(began, pg_later(region->timeout, OVERDUE));
}

/* When the first of them is; UINT64_MAX: there is none. */
static uint64_t first_overdue(const struct pg_region *region, int *which)
{
    *which = pg_jobs_oldest(&region->jobs);
    return *which < 0 ? UINT64_MAX : pg_overdue(region, region->jobs.at[*which].began);
}

uint64_t pg_next_expiry(const struct pg_region *region)
{
    int which;

    return first_overdue(region, &which);
}

void pg_expire_jobs(struct pg_region *region)
{
    int which;

    while (first_overdue(region, &which) <= pg_now() && which >= 0) {
        int starved = region->jobs.at[which].starved;
        struct pg_job job = pg_jobs_take(&region->jobs, which);
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
    else if (which >= 0 && region->jobs.at[which].not_before <= pg_now())
        pg_do_job(region, pg_jobs_take(&region->jobs, which));
    else if (region->request_count && !region->ahead_busy)
        pg_read_ahead(region);
    else if (region->want_tries)
        pg_try_again(region);
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
        int which = pg_jobs_next(&region->jobs);
        if (work(region, which))
            continue;
        if (which >= 0)
            pg_wait_until(&region->work, &region->lock, region->jobs.at[which].not_before);
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
    found += region->want_tries != 0;
    for (uint32_t i = 0; i < region->jobs.count && found < 2; i++)
        found += region->jobs.at[i].not_before <= now;
    return found > 1;
}

void pg_work_shared(struct pg_region *region)
{
    int which, again = 0;

    pthread_mutex_lock(&region->lock);
    while (!region->stop && !again) {
        if (is_more(region))
            region->above->call_worker(region);
        if (!work(region, pg_jobs_next(&region->jobs)))
            break;
        again = region->above->is_wanted(region);
    }
    if (region->stop)
        pg_drop_requests(region);
    which = region->stop ? -1 : pg_jobs_next(&region->jobs);
    region->above->worked(region, which < 0 ? UINT64_MAX : region->jobs.at[which].not_before,
                          again && !region->stop);
    pthread_mutex_unlock(&region->lock);
}

/* Workers: what would keep the event loop waiting. */
#include <errno.h>

#include "region.h"

/* ns: a worker should have given it up by then. */
#define OVERDUE UINT64_C(250000000)

int pg_put_job(struct pg_region *region, struct pg_job job)
{
    if (region->job_count == PG_JOBS)
        return -PG_NOT_NOW;
    region->jobs[region->job_count++] = job;
    region->starving += job.starved != 0;
    pthread_cond_signal(&region->work);
    return 0;
}

/* The job that is due, or is due first. -1: there is none. */
static int next_job(const struct pg_region *region)
{
    int next = -1;

    for (uint32_t i = 0; i < region->job_count; i++)
        if (next < 0 || region->jobs[i].not_before < region->jobs[next].not_before)
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
    pthread_cond_signal(&region->work);
}

void pg_note_frame(struct pg_region *region)
{
    if (!region->starving)
        return;
    for (uint32_t i = 0; i < region->job_count; i++)
        if (region->jobs[i].starved)
            region->jobs[i].not_before = 0;
    pthread_cond_signal(&region->work);
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
        /* Else they would ask again at once, and never let go of the lock. */
        if (left)
            pg_note_frame(region);
    } while (left && region->blocks.dirty &&
             region->blocks.length[PG_STANDBY] < region->standby_wanted);
    region->write_busy = 0;
}

uint64_t pg_next_expiry(const struct pg_region *region)
{
    uint64_t first = UINT64_MAX;

    for (uint32_t i = 0; i < region->job_count; i++)
        if (region->jobs[i].began < first)
            first = region->jobs[i].began;
    return first == UINT64_MAX ? first : first + region->timeout + OVERDUE;
}

void pg_expire_jobs(struct pg_region *region)
{
    uint64_t now = pg_now();

    for (uint32_t i = 0; i < region->job_count; i++) {
        struct pg_job job = region->jobs[i];
        if (job.began + region->timeout + OVERDUE > now)
            continue;
        take_job(region, (int)i--);
        pg_put_off(region, job, region->write_error ? region->write_error : ETIMEDOUT, 0, 1);
    }
}

void *pg_work(void *argument)
{
    struct pg_region *region = argument;

    pthread_mutex_lock(&region->lock);
    while (!region->stop) {
        int which = next_job(region);
        if (region->want_writes && !region->write_busy && pg_may_write(region))
            write_out(region);
        else if (which >= 0 && region->jobs[which].not_before <= pg_now())
            pg_do_job(region, take_job(region, which));
        else if (region->request_count && !region->ahead_busy)
            pg_read_ahead(region);
        else if (which >= 0)
            pg_wait_until(&region->work, &region->lock, region->jobs[which].not_before);
        else
            pthread_cond_wait(&region->work, &region->lock);
    }
    pthread_mutex_unlock(&region->lock);
    return NULL;
}

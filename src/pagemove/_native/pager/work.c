/* Workers: what would keep the event loop waiting. */
#include <errno.h>

#include "region.h"

int pg_put_job(struct pg_region *region, struct pg_job job)
{
    if (region->job_count == PG_JOBS)
        return -EAGAIN;
    region->jobs[region->job_count++] = job;
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
    return job;
}

static void wait_until(struct pg_region *region, uint64_t when)
{
    struct timespec at = {(time_t)(when / 1000000000), (long)(when % 1000000000)};

    pthread_cond_timedwait(&region->work, &region->lock, &at);
}

void *pg_work(void *argument)
{
    struct pg_region *region = argument;

    pthread_mutex_lock(&region->lock);
    while (!region->stop) {
        int which = next_job(region);
        if (which >= 0 && region->jobs[which].not_before <= pg_now())
            pg_do_job(region, take_job(region, which));
        else if (region->request_count && !region->ahead_busy)
            pg_read_ahead(region);
        else if (which >= 0)
            wait_until(region, region->jobs[which].not_before);
        else
            pthread_cond_wait(&region->work, &region->lock);
    }
    pthread_mutex_unlock(&region->lock);
    return NULL;
}

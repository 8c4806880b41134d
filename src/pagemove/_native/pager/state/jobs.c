#include "pager/state/jobs.h"

#include <errno.h>
#include <stdlib.h>

#include "pager/state/terms.h"

enum { AT_FIRST = 256 };

static int grow(struct pg_jobs *jobs, uint32_t room)
{
    struct pg_job *larger = realloc(jobs->at, room * sizeof *larger);

    if (!larger)
        return -PG_NOT_NOW;
    jobs->at = larger;
    jobs->room = room;
    return 0;
}

int pg_jobs_init(struct pg_jobs *jobs, uint32_t slots)
{
    *jobs = (struct pg_jobs){.kept = slots};
    return grow(jobs, slots + AT_FIRST) ? -ENOMEM : 0;
}

void pg_jobs_free(struct pg_jobs *jobs)
{
    free(jobs->at);
}

int pg_jobs_put(struct pg_jobs *jobs, struct pg_job job)
{
    uint32_t kept = job.slot == PG_NO_SLOT ? jobs->kept : 0;

    if (jobs->count >= jobs->room - kept && grow(jobs, 2 * jobs->room) && kept)
        return -PG_NOT_NOW;
    jobs->at[jobs->count++] = job;
    jobs->starving += job.starved != 0;
    return 0;
}

int pg_jobs_next(const struct pg_jobs *jobs)
{
    int next = -1;

    for (uint32_t i = 0; i < jobs->count; i++)
        if (next < 0 || jobs->at[i].not_before < jobs->at[next].not_before ||
            (jobs->at[i].not_before == jobs->at[next].not_before &&
             jobs->at[i].began < jobs->at[next].began))
            next = (int)i;
    return next;
}

int pg_jobs_oldest(const struct pg_jobs *jobs)
{
    int oldest = -1;

    for (uint32_t i = 0; i < jobs->count; i++)
        if (oldest < 0 || jobs->at[i].began < jobs->at[oldest].began)
            oldest = (int)i;
    return oldest;
}

struct pg_job pg_jobs_take(struct pg_jobs *jobs, int which)
{
    struct pg_job job = jobs->at[which];

    jobs->at[which] = jobs->at[--jobs->count];
    jobs->starving -= job.starved != 0;
    job.starved = 0;
    return job;
}

void pg_jobs_feed(struct pg_jobs *jobs)
{
    for (uint32_t i = 0; i < jobs->count; i++)
        if (jobs->at[i].starved)
            jobs->at[i].not_before = 0;
}

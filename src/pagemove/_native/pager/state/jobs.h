/* Blocks that threads wait for and that could not be had at once. */
#ifndef PAGEMOVE_PAGER_STATE_JOBS_H
#define PAGEMOVE_PAGER_STATE_JOBS_H

#include <stdint.h>

#include "pager/state/blocks.h"

/* A block that a thread waits for and that could not be filled at once. */
struct pg_job {
    pg_entry entry;
    uint32_t number;
    uint16_t slot;  /* PG_NO_SLOT, or one that has the contents already */
    int starved;    /* all it lacks is a frame */
    int writing;    /* wait for a WRITING block, which needs no read but a frame */
    int recovering; /* nobody waits: take poison away, if the block has not left meanwhile */
    uint64_t tries, began, not_before;
};

struct pg_jobs {
    struct pg_job *at;
    uint32_t count, room;
    uint32_t kept;     /* room for jobs with a slot: some have the only copy of what was stored */
    uint32_t starving; /* those that lack a frame: the next ones are theirs */
};

/* Room for so many with a slot, for which there is always some, and for others. 0 or -ENOMEM. */
int pg_jobs_init(struct pg_jobs *jobs, uint32_t slots);
void pg_jobs_free(struct pg_jobs *jobs);

/* -PG_NOT_NOW: no memory for one without a slot. */
int pg_jobs_put(struct pg_jobs *jobs, struct pg_job job);

/* The job that is due, or is due first; of several, the one that waits longest, since a frame comes
 * to all that lack one at the same time. -1: there is none. */
int pg_jobs_next(const struct pg_jobs *jobs);

/* The one that has been waited for longest; -1: there is none. */
int pg_jobs_oldest(const struct pg_jobs *jobs);

/* Take one out. */
struct pg_job pg_jobs_take(struct pg_jobs *jobs, int which);

/* There is a frame: those that lack one are due. */
void pg_jobs_feed(struct pg_jobs *jobs);

#endif

/* Many blocks at once, anywhere in a region: read with as many reads under way as pay. */
#ifndef PAGEMOVE_PAGER_ENGINE_GATHER_H
#define PAGEMOVE_PAGER_ENGINE_GATHER_H

#include <stddef.h>
#include <stdint.h>

#include "pager/state/terms.h"

struct pg_region;

/* Blocks that are read for one call; it belongs to whoever holds the region's lock. */
struct pg_gather {
    const struct pg_run *runs;
    size_t run_count, run; /* run: the first of which something is left, */
    uint32_t offset;       /* from this block of it on */
    uint32_t part_most;    /* blocks of one read */
    unsigned busy;         /* threads that read a part of it */
    int called_off;
    int failed; /* the store does not answer: the rest is not tried */
    struct pg_gather *next;
};

/* For one that has the descriptors. Without `wait` only what can be read at the first try. 0 or
 * -errno. Needs no lock. */
int pg_do_gather(struct pg_region *region, const struct pg_run *runs, size_t count, int wait);

/* Read a part of the oldest of which something is left. 0: there is none. Drops the lock. */
int pg_read_gather(struct pg_region *region);

/* Note that blocks are used that are there. Returns how many are not. Needs no lock. */
uint64_t pg_note_used(struct pg_region *region, const struct pg_run *runs, size_t count);

#endif

/* Calls of the program that threads make which have the descriptors of a region. */
#ifndef PAGEMOVE_PAGER_CALLS_H
#define PAGEMOVE_PAGER_CALLS_H

#include <stddef.h>
#include <stdint.h>

#include "pager/engine/region.h"

struct pg_saving;

struct pg_call {
    int (*function)(struct pg_region *region, struct pg_call *call);
    /* What takes back a call that has been made for nobody, or NULL. */
    void (*undo)(struct pg_region *region, struct pg_call *call);
    uint64_t offset, length, to;
    struct pg_run *runs; /* to be pinned or read; its own */
    size_t run_count;
    int write, result, done, called_off;
    int posted;               /* no thread waits */
    uint32_t hint;            /* one that may be left out */
    struct pg_saving *saving; /* receives the result, or NULL */
    struct pg_call *next;
    char text[PG_TEXT]; /* what the store says of itself */
};

/* Have a call made, and wait for it; with `asking`, no longer than the program may. `text`: NULL,
 * or where to put what it says. */
int pg_run_call(struct pg_region *region, const struct pg_call *wanted, char *text, int asking);

/* Have a call made that nobody waits for. 0 or -errno; -PG_NOT_NOW: it was left out. */
int pg_post_call(struct pg_region *region, const struct pg_call *wanted);

#endif

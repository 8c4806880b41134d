/* One move and many, with all the kernel's answers translated. Never includes Python.h. */
#ifndef PAGEMOVE_MOVES_H
#define PAGEMOVE_MOVES_H

#include <stddef.h>
#include <stdint.h>

#include "process.h"

enum {
    PM_ALLOW_SRC_HOLES = 1, /* RAP_ALLOW_SRC_HOLES: the value of 2014, never the kernel's own */
};

/* Move pages as remap_anon_pages promises. Return the bytes moved, or -errno where nothing was.
 *
 * With `wait` 0, -EWOULDBLOCK says that another thread is moving nearby: call again with 1, and
 * without holding what that thread may need. The errno is the kernel's, or that of the check that
 * failed; which page, and what is there, is for the caller to find out.
 */
int64_t pm_move(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                unsigned flags, int wait);

/* One call of move_many: what to move, and how far it got. */
struct pm_many {
    uint64_t dst, src;            /* first byte of both buffers */
    uint64_t unit;                /* bytes of one page of the index arrays */
    int64_t dst_limit, src_limit; /* pages in each buffer */
    const int64_t *dst_pages, *src_pages;
    size_t count;
    unsigned flags;
    size_t index;     /* first page not wholly moved */
    uint64_t partial; /* bytes of that page that were */
    uint64_t moved;   /* bytes in all */
};

/* Go on from `many->index`. 0 when all is moved, else -errno; -ERANGE: an index is out of range. */
int pm_move_many(struct pm_process *process, struct pm_many *many);

/* Position of the first index outside [0, limit), or -1. */
int64_t pm_first_outside(const int64_t *pages, size_t count, int64_t limit);

#endif

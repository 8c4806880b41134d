/* Between moves.c, many.c and guard.c: a move by a caller that has looked already. */
#ifndef PAGEMOVE_KNOWN_H
#define PAGEMOVE_KNOWN_H

#include <stddef.h>
#include <stdint.h>

#include "process.h"

/* Pages as one look saw them, and our own moves since: a byte a page, 1 for there. What is a hole
 * here may be swapped out or a marker; a page nobody asked about is a hole in the source and there
 * in the destination, so that it is looked at again. */
struct pm_seen {
    uint64_t start, end;
    unsigned char *vector;
    size_t room; /* bytes of the vector */
};

/* What a caller already knows, and already holds. */
struct pm_known {
    struct pm_seen dst, src;
    int locked;  /* the stripes of everything in hand are held */
    int no_huge; /* no source page is part of a huge page */
};

/* pm_move with what is known beforehand; NULL: nothing. */
int64_t pm_move_with(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                     uint64_t src, uint64_t length, unsigned flags, int wait);

/* The call itself, repeated while the kernel asks for that. Bytes, or -errno of the first page. */
int64_t pm_kernel_move(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length);

/* Whether both ranges lie within one mapping each, asked when the kernel is shown only a part. */
int pm_inside_mappings(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length);

#endif

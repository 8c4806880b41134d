/* Between moves.c and many.c: a move by somebody who has looked already. */
#ifndef PAGEMOVE_KNOWN_H
#define PAGEMOVE_KNOWN_H

#include <stdint.h>

#include "process.h"

/* What a caller already knows, and already holds. */
struct pm_known {
    uint64_t start, end;   /* the source pages the vector describes */
    unsigned char *vector; /* 1: there when looked at, and not moved by us since */
    int locked;            /* the stripes of everything in hand are held */
};

/* pm_move with what is known beforehand; NULL: nothing. */
int64_t pm_move_with(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                     uint64_t src, uint64_t length, unsigned flags, int wait);

#endif

/* The thread of a forked child that waits for the first fault in what it has inherited. */
#ifndef PAGEMOVE_PAGER_ESTATE_H
#define PAGEMOVE_PAGER_ESTATE_H

#include <pthread.h>
#include <stdint.h>

#include "pager/engine/region.h"
#include "pager/opening.h"

/* UNSERVED: in a child that Python does not know of, or about to be there. */
enum pg_heir_state {
    PG_HEIR_UNSERVED,
    PG_HEIR_WAITING,
    PG_HEIR_OPENING,
    PG_HEIR_OPEN,
    PG_HEIR_FAILED,
    PG_HEIR_ENDED
};

struct pg_heir {
    const struct pg_region *origin; /* what was first opened, in whichever process */
    struct pg_opening *opening;     /* what it is opened with */
    uint64_t base, length;
    struct pg_uffd uffd;
    int fd; /* of the file */
    enum pg_heir_state state;
    struct pg_region *region;
    int error, barred; /* barred: its addresses are taken, but not to be touched */
    char text[PG_TEXT];
    struct pg_stone *stone;
    struct pg_heir *next, **link;
    struct pg_estate *estate;
};

struct pg_estate {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* the state of an heir, or `ready` */
    int ready, error;
    struct pg_heir *heirs;
    int queue; /* epoll, of the userfaultfds of those that wait */

    pthread_mutex_t ringing;
    uint64_t bell;
    int bell_uffd;
    struct pg_heir *caller; /* who it rings for */
    int ends;               /* it is to end, not to be opened */
};

/* That thread, of an estate. */
void *pg_wait_for_heirs(void *estate);

/* Have it open one that waits, or end it. The thread of the program that touches the bell waits
 * until what it rings for is done. */
void pg_ring_for(struct pg_estate *mine, struct pg_heir *heir, int ends);

/* It cannot be there. Its grave stays as it is: most children never touch it, and are not to hear
 * of it. */
void pg_fail_heir(struct pg_heir *heir, int error);

#endif

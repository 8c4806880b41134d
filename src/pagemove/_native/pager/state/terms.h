/* What all floors call things by. */
#ifndef PAGEMOVE_PAGER_STATE_TERMS_H
#define PAGEMOVE_PAGER_STATE_TERMS_H

#include <stdint.h>

enum pg_mode {
    PG_READ = 0,    /* nothing is ever written */
    PG_WRITE = 1,   /* changes go to the store */
    PG_PRIVATE = 2, /* changes stay with the region, in an unnamed file when they have to leave */
};

enum pg_operation { PG_OP_READ = 0, PG_OP_WRITE = 1, PG_OP_SYNC = 2, PG_OP_STATS = 3 };

/* What the pager says to itself, as -PG_...: beyond all errnos, for a store may fail with any of
 * those. `pg_errno_of` translates what leaves it. */
enum pg_code {
    PG_SHORT = 4096, /* the store is shorter than it should be */
    PG_NOT_NOW,      /* no frame, slot, lane or place in a queue at present */
    PG_NO_ANSWER,    /* the helper was asked, and has not answered in time */
    PG_GONE,         /* it was asked, and has ended: what became of the request is not known */
    PG_NOT_ASKED,    /* it had ended before it could be asked: nothing became of it */
    PG_NO_MEMORY,    /* there is none for a slot to read into */
    PG_NO_ROOM,      /* more is to be pinned than the limit has room for */
    PG_NOT_DURABLE,  /* of blocks that have left memory it is not known, and never will be */
    PG_INTERRUPTED,  /* the program does not wait any longer */
    PG_UNALIGNED,    /* blocks do not begin where direct I/O can */
    PG_LOST,         /* the region is not there for the program; what was changed is saved */
    PG_STAYS,        /* a block does not shrink, and may as well stay where it is */
};

/* The errno that people see for a code, both positive. 0: PG_SHORT, of a flush PG_NOT_DURABLE. */
int pg_errno_of(int code);

/* Blocks that follow each other. */
struct pg_run {
    uint32_t first, count;
};

enum { PG_TEXT = 4096 /* the longest explanation of a failure */ };

#endif

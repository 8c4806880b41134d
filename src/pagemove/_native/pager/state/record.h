/* The order in which blocks are first needed, so that it can be read ahead next time. */
#ifndef PAGEMOVE_PAGER_STATE_RECORD_H
#define PAGEMOVE_PAGER_STATE_RECORD_H

#include <stdint.h>

struct pg_record {
    uint32_t *numbers; /* blocks in that order, while it is recorded */
    uint64_t *seen;    /* a bit for each that is there already; NULL: nothing is recorded */
    uint32_t count, room, blocks;
};

/* Record from now on. 0 or -ENOMEM. */
int pg_record_start(struct pg_record *record, uint32_t blocks);
void pg_record_free(struct pg_record *record);

/* A block is needed: if that is recorded, and is for the first time, it is noted. */
void pg_record_needed(struct pg_record *record, uint32_t number);

#endif

/* What the giver of an array sends, and holds until it is sent: giving.c has the rest. */
#ifndef PAGEMOVE_PAGER_SENDING_H
#define PAGEMOVE_PAGER_SENDING_H

#include <pthread.h>
#include <stdint.h>

#include "pager/mechanisms/wire.h"

struct pg_region;

enum { PG_WHY = 256 };

struct pg_giver {
    pthread_mutex_t lock;
    struct pg_region *region;
    const char *flat;
    uint64_t nbytes, unit, offset; /* in the region */
    uint32_t units, missing;
    uint8_t *acknowledged;
    uint64_t dirty, bytes_written; /* as they have to stay */
    uint64_t sent;
    int broken, asked;
};

/* A connection, and why the last request failed. */
struct pg_peer {
    struct pg_wire wire;
    int file, notice;
    char text[PG_WHY];
};

/* 0, or -EBUSY: the array was changed after the switch, and the connection has a text of it. */
int pg_check_unchanged(struct pg_giver *giver, struct pg_peer *to);

/* Send the head of an answer; with an error, -errno, the text. 0, or -errno: the connection is
 * broken. */
int pg_answer(const struct pg_peer *to, int kind, int error, struct pg_wire_request asked,
              uint64_t length);

/* Answer with the bytes [start, stop) of the array. The same. */
int pg_give_units(struct pg_giver *giver, struct pg_peer *to, struct pg_wire_request asked,
                  uint64_t start, uint64_t stop);

#endif

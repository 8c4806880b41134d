/* An array of a region that is handed over to another process: requests for it, answered without
 * the interpreter. See wire.h. */
#ifndef PAGEMOVE_PAGER_GIVING_H
#define PAGEMOVE_PAGER_GIVING_H

#include <stdint.h>

struct pg_region;
struct pg_giver;

/* What a connection needs the interpreter for; beyond that it is served until it ends. */
enum pg_need {
    PG_NEED_ORDER = 1, /* the order of units is asked for */
    PG_NEED_NOTICE,    /* all is acknowledged, or nothing more is given: who waits wants to know */
};

/* Bytes at an address of the region, which stays open as long as this is there. NULL: no memory. */
struct pg_giver *pg_giver_new(struct pg_region *region, uint64_t address, uint64_t nbytes,
                              uint64_t unit);
void pg_giver_free(struct pg_giver *giver);

/* From now on nothing may change: what the counters say of it. */
void pg_giver_switched(struct pg_giver *giver, uint64_t dirty, uint64_t bytes_written);

/* Answer what comes on a connection: PG_NEED_..., or -errno: it has ended. `file` is what the other
 * side has passed for the bytes; -1: nothing yet. Each answer has to be taken in so many
 * nanoseconds. */
int pg_giver_serve(struct pg_giver *giver, int fd, int *file, uint64_t patience);

/* Units that are not acknowledged, and bytes that were sent. */
uint32_t pg_giver_missing(const struct pg_giver *giver);
uint64_t pg_giver_sent(const struct pg_giver *giver);

/* Whether the owner has asked for anything since the switch: it knows that it is the owner. */
int pg_giver_was_asked(const struct pg_giver *giver);

/* Whether it was changed after all: nothing more is given. */
int pg_giver_is_broken(const struct pg_giver *giver);

/* A byte for each unit: whether it is acknowledged. */
void pg_giver_acknowledged(struct pg_giver *giver, uint8_t *units);

#endif

/* An array that another process hands over, as a store that needs no helper: what is touched comes
 * at once, all else in the background, and it is kept in unnamed files. See pg_arrivals.
 *
 * No thread here ever needs the interpreter, so one that holds it may wait for a block. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_TAKING_H
#define PAGEMOVE_PAGER_MECHANISMS_TAKING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "pager/mechanisms/config.h"

struct pg_taken;

/* A copy of all of it; not 0: no memory. */
int pg_copy_taking(struct pg_taking *copy, const struct pg_taking *taking);
void pg_free_taking(struct pg_taking *taking);

/* 0 or -errno; `text` says why, if more is known. Nobody is asked before the first read or write:
 * that makes this process the owner. */
int pg_taken_open(const struct pg_taking *taking, uint64_t nbytes, struct pg_taken **opened,
                  char text[PG_TEXT]);

/* Wake everybody who waits: nothing comes any more. */
void pg_taken_stop(struct pg_taken *taken);
void pg_taken_close(struct pg_taken *taken);

/* In a forked child: close what is the parent's, and free nothing. */
void pg_taken_forget(struct pg_taken *taken);

/* As pg_store_read and pg_store_write, of what lies within the store. `text` says why not. */
int pg_taken_read(struct pg_taken *taken, uint64_t offset, const struct iovec *vector, size_t count,
                  uint64_t total, int nowait, char text[PG_TEXT]);
int pg_taken_write(struct pg_taken *taken, uint64_t offset, const struct iovec *vector,
                   size_t count, uint64_t total, char text[PG_TEXT]);
int pg_taken_sync(struct pg_taken *taken, char text[PG_TEXT]);

/* How much is here, as JSON. */
void pg_taken_stats(struct pg_taken *taken, char text[PG_TEXT]);

/* Have all else come after all. For tests. */
int pg_taken_go_on(struct pg_taken *taken);

/* Units that are here, a bit each: so many bytes. For tests. */
uint64_t pg_taken_bits(struct pg_taken *taken, uint8_t *bits);

#endif

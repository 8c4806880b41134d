/* Where blocks come from and go to: a file, a helper process, compressed memory or an array that is
 * handed over, or the faults that tests ask for in its place. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_STORE_H
#define PAGEMOVE_PAGER_MECHANISMS_STORE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "pager/mechanisms/config.h"
#include "pager/mechanisms/direct.h"

struct pg_channel;
struct pg_compressed;
struct pg_taken;

enum { PG_SAID = 64 };

/* Of a call that failed: which it was, and what the helper, or who has it, said of it. */
struct pg_said {
    int operation, error;
    uint64_t offset, length; /* in the region; no length: all of the store */
    char text[PG_TEXT];
};

struct pg_store {
    int fd;                           /* -1 where a helper has the store, or memory is it */
    struct pg_channel *channel;       /* to that helper */
    struct pg_compressed *compressed; /* or that memory */
    struct pg_taken *taken;           /* or that array */
    pthread_mutex_t lock;
    struct pg_said *said; /* the newest of what the helper said; a ring */
    uint64_t said_count;
    uint64_t offset, nbytes;
    char *label;
    struct pg_injection *injections;
    size_t injection_count;
    uint64_t calls[3];             /* made of each operation, for the injections */
    int no_nowait;                 /* the file system does not know RWF_NOWAIT */
    int whole;                     /* a regular file that had all its bytes when it was opened */
    int sparse;                    /* it has holes, which are not read */
    struct pg_direct direct, past; /* to read, and to write */
    int waits; /* a read that is not to wait is not made without RWF_NOWAIT either */
};

/* One contiguous piece of memory of an I/O. */
struct pg_piece {
    void *address;
    uint64_t length;
};

enum { PG_PIECES = 256 };

int pg_store_init(struct pg_store *store, const struct pg_config *config, int region,
                  char text[PG_TEXT]);

/* All but its label, which others may read until the region is in no list any more. */
void pg_store_free(struct pg_store *store, int inherited);

/* Read pieces that follow each other in the store. What lies beyond its end becomes zeros, as do
 * holes; `got` is how many bytes were read, without either. With `nowait`, -PG_NOT_NOW where that
 * would have to wait for a device. All of it, or -errno, -PG_SHORT. */
int pg_store_read(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                  size_t count, int nowait, uint64_t *got);

/* Where in a file a read by others than pg_store_read finds so many bytes. */
struct pg_place {
    int fd;
    uint64_t offset;
    uint64_t length; /* to be read */
    uint64_t wanted; /* of these; what follows in the block is to become zeros */
};

/* 0; -PG_NOT_NOW: they are to be read by pg_store_read. */
int pg_store_place(const struct pg_store *store, uint64_t offset, uint64_t length,
                   struct pg_place *place);

/* Write pieces that follow each other; what lies beyond the end of the store is left out. */
int pg_store_write(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                   size_t count);

/* The same of one whole block, which may stay where it is: -PG_STAYS, it is to. Then the store is
 * asked to count it, with the region's lock; `again`: it did before. 0 or -ENOSPC. */
int pg_store_offer(struct pg_store *store, uint32_t number, const struct pg_piece *block);
int pg_store_stay(struct pg_store *store, uint32_t number, uint64_t block_size, int again);

/* Count a call and do what tests want of it: a positive errno, or the bytes to leave out. */
int pg_inject(struct pg_store *store, int operation, uint64_t *shorten);

/* Keep nothing of a range, so far as that is possible: it reads as zeros. Of whole
 * blocks of compressed memory, a file of the pager's own, or a helper's store that keeps no zeros.
 */
int pg_store_forget(struct pg_store *store, uint64_t offset, uint64_t length, uint64_t block_size);

/* Have a block of compressed memory be another, which is zeros. 0, or -ENOTSUP: it is in a file. */
int pg_store_shift(struct pg_store *store, uint32_t to, uint32_t from);

/* Whether a helper still has to answer an earlier write of some of these bytes that was given up.
 */
int pg_write_is_late(const struct pg_store *store, uint64_t offset, uint64_t length);

/* Have a helper read a block and put it at `address` itself, without waiting for it. -PG_NOT_NOW:
 * it is to be read as others are. */
struct pg_lane;
int pg_store_ask(struct pg_store *store, uint64_t offset, uint64_t length, uint64_t address,
                 int protect, struct pg_lane **lane);

/* Whether it is there; as pg_lane_is_done and pg_lane_listen. */
int pg_store_is_there(const struct pg_store *store, const struct pg_lane *lane);
int pg_store_listen(struct pg_store *store, const struct pg_lane *lane);

/* The answer to that: 0, and `said` is 0 or -errno. -PG_NO_ANSWER: there is none yet. */
int pg_store_answer(struct pg_store *store, struct pg_lane *lane, uint64_t offset, uint64_t length,
                    int *said);

/* Keep what was said of a call that failed. Other threads' calls fail meanwhile, each for its
 * reason. */
void pg_note_said(struct pg_store *store, int operation, uint64_t offset, uint64_t length,
                  int error, const char text[PG_TEXT]);

/* What the helper, or who else has it, said when such a call failed with such an error (positive)
 * the last time, at that offset or with PG_ANYWHERE at any; empty if it said nothing. */
#define PG_ANYWHERE UINT64_MAX
void pg_store_text(struct pg_store *store, int operation, uint64_t offset, int error,
                   char text[PG_TEXT]);

/* End the process that may put blocks into the region. 0, or -EBUSY: it cannot be ended. */
int pg_store_end(struct pg_store *store);

/* 0 when all that was written is durable. */
int pg_store_sync(struct pg_store *store);

/* Wake who waits for the store: from now on nothing comes. */
void pg_store_stop(struct pg_store *store);

/* What the store says of itself. 0 or -errno; empty for a file. */
int pg_store_describe(struct pg_store *store, char text[PG_TEXT]);

#endif

/* Where blocks come from and go to: a file, or the faults that tests ask for in its place. */
#ifndef PAGEMOVE_PAGER_STORE_H
#define PAGEMOVE_PAGER_STORE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "pager.h"

struct pg_channel;

struct pg_store {
    int fd;                     /* -1 where a helper has the store */
    struct pg_channel *channel; /* to that helper */
    pthread_mutex_t lock;
    char text[PG_TEXT]; /* what the helper said of the newest failure */
    uint64_t offset, nbytes;
    char *label;
    struct pg_injection *injections;
    size_t injection_count;
    uint64_t calls[3]; /* made of each operation, for the injections */
    int no_nowait;     /* the file system does not know RWF_NOWAIT */
    int whole;         /* a regular file that had all its bytes when it was opened */
};

/* One contiguous piece of memory of an I/O. */
struct pg_piece {
    void *address;
    uint64_t length;
};

enum { PG_PIECES = 256 };

int pg_store_init(struct pg_store *store, const struct pg_config *config, int region,
                  char text[PG_TEXT]);
void pg_store_free(struct pg_store *store, int inherited);

/* Read pieces that follow each other in the store. What lies beyond its end becomes zeros. With
 * `nowait`, -PG_NOT_NOW where that would have to wait for a device. All of it, or -errno, -PG_SHORT. */
int pg_store_read(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                  size_t count, int nowait);

/* Write pieces that follow each other; what lies beyond the end of the store is left out. */
int pg_store_write(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                   size_t count);

/* Have a helper read a block and put it at `address` itself, without waiting for it. -PG_NOT_NOW: it is
 * to be read as others are. */
struct pg_line;
int pg_store_ask(struct pg_store *store, uint64_t offset, uint64_t length, uint64_t address,
                 int protect, struct pg_line **line);
int pg_store_answer(struct pg_store *store, struct pg_line *line);

/* What the helper said of the newest failure, which may be another thread's. */
void pg_store_text(struct pg_store *store, char text[PG_TEXT]);

/* 0 when all that was written is durable. */
int pg_store_sync(struct pg_store *store);

#endif

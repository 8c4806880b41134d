/* Compressed memory in this process as a store: blocks that are not resident, compressed by the
 * pager's own threads.
 *
 * A new one is all zeros. A block of one repeated word is kept as that word. One that does not
 * shrink goes to a file as it is, where there is one; else it stays in its place in the region, or
 * is copied as it is, and takes as much of the limit either way. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_COMPRESSED_H
#define PAGEMOVE_PAGER_MECHANISMS_COMPRESSED_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "pager/mechanisms/config.h"

struct pg_compressed;
struct pg_spills;

/* As config->compression has it. 0 or -errno; then `text` says why, where it is the directory. */
int pg_compressed_open(const struct pg_config *config, struct pg_compressed **opened,
                       char text[PG_TEXT]);
void pg_compressed_close(struct pg_compressed *memory);

/* Who has this while the process is forked sees to it that the child can go on with it, which calls
 * the other. */
pthread_mutex_t *pg_compressed_lock(struct pg_compressed *memory);
void pg_compressed_forked(struct pg_compressed *memory);

/* The files of blocks that are not here: who forks lends them. */
struct pg_spills *pg_compressed_files(const struct pg_compressed *memory);

/* Have what was kept in them for others that have ended by now. For a thread of the pager. */
void pg_compressed_thaw(struct pg_compressed *memory);

/* As pg_store_read and pg_store_write, of what lies within the store. Of one block there is one
 * call at a time. `text` says why it failed, where more is known than the errno says. */
int pg_compressed_read(struct pg_compressed *memory, uint64_t offset, const struct iovec *vector,
                       size_t count, int nowait, char text[PG_TEXT]);
int pg_compressed_write(struct pg_compressed *memory, uint64_t offset, const struct iovec *vector,
                        size_t count, char text[PG_TEXT]);

/* Write a whole block that may stay where it is. -PG_STAYS: it does not shrink, and should; nothing
 * has changed. */
int pg_compressed_offer(struct pg_compressed *memory, uint32_t block, const void *bytes,
                        char text[PG_TEXT]);

/* Count a block as kept in place, of which nothing else is kept then, until it is written, shifted
 * or discarded. 0, or -ENOSPC: there is no room, unless it has been in place; and `text` says so.
 * Whoever calls this has the region's lock, so that a fork finds region and store of one mind. */
int pg_compressed_stay(struct pg_compressed *memory, uint32_t block, int again, char text[PG_TEXT]);

/* Whether it has no room for so many bytes more, and `spare` ones if it is not small, where they
 * shrink as those that it holds; without a file it says nothing of that before it is half full. */
int pg_compressed_is_full(struct pg_compressed *memory, uint64_t more, uint64_t spare);

/* Whether a block that does not shrink, or has no room, goes to a file. */
int pg_compressed_spills(const struct pg_compressed *memory);

/* Have a block be another, which is zeros. 0, or -EEXIST: it is not. */
int pg_compressed_shift(struct pg_compressed *memory, uint32_t to, uint32_t from);

/* Whether a block is one word, repeated. It is not written meanwhile. */
int pg_compressed_is_same(const struct pg_compressed *memory, uint32_t block);

/* Forget blocks: they are zeros, and their memory is free. */
void pg_compressed_discard(struct pg_compressed *memory, uint32_t first, uint64_t count);

/* What it holds, as JSON. */
void pg_compressed_stats(struct pg_compressed *memory, char text[PG_TEXT]);

#endif

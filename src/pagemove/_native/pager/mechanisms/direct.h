/* Direct I/O: past the page cache, so that a block does not lie in memory twice, nor is copied. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_DIRECT_H
#define PAGEMOVE_PAGER_MECHANISMS_DIRECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct iovec;

struct pg_direct {
    int fd;             /* of an open file of its own; -1: there is none */
    int state;          /* 0: not wanted; 1: in use; -errno, -PG_UNALIGNED: it cannot be, and why */
    uint32_t alignment; /* of places in the file, of memory, and of lengths */
};

/* Open the file of `fd` once more, for blocks whose first byte is at `offset`. */
void pg_direct_open(struct pg_direct *direct, int fd, uint64_t offset, uint64_t block_size,
                    int writes);
void pg_direct_close(struct pg_direct *direct);

/* Whether these bytes can be read, or written, so. */
int pg_direct_fits(const struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                   size_t count);

/* Read them, at least so many. 0, or -PG_NOT_NOW: through the page cache they are read, or it is
 * known why not. */
int pg_direct_read(struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                   size_t count, uint64_t least);

/* Write them. How many were written; -PG_NOT_NOW: to be written through the page cache; or -errno.
 */
ssize_t pg_direct_write(struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                        size_t count);

#endif

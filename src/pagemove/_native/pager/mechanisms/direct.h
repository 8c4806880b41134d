/* Direct I/O: reads that go past the page cache, so that a block does not lie in memory twice. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_DIRECT_H
#define PAGEMOVE_PAGER_MECHANISMS_DIRECT_H

#include <stddef.h>
#include <stdint.h>

struct iovec;

struct pg_direct {
    int fd;             /* of an open file of its own; -1: there is none */
    int state;          /* 0: not wanted; 1: in use; -errno, -PG_UNALIGNED: it cannot be, and why */
    uint32_t alignment; /* of places in the file, of memory, and of lengths */
};

/* Open the file of `fd` once more, to read blocks whose first byte is at `offset`. */
void pg_direct_open(struct pg_direct *direct, int fd, uint64_t offset, uint64_t block_size);
void pg_direct_close(struct pg_direct *direct);

/* Whether these bytes can be read so. */
int pg_direct_reads(const struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                    size_t count);

/* Read them, at least so many. 0, or -PG_NOT_NOW: through the page cache they are read, or it is
 * known why not. */
int pg_direct_read(struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                   size_t count, uint64_t least);

#endif

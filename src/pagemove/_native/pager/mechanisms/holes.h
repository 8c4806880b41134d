/* Holes of a sparse file: nothing has to be read of them to know that they are zeros. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_HOLES_H
#define PAGEMOVE_PAGER_MECHANISMS_HOLES_H

#include <stdint.h>

/* Whether a file has holes, on a file system that says where they are and is right. */
int pg_has_holes(int fd);

/* Whether there is a hole at a place of the file, which had all bytes up to `end` when it was
 * opened. Shortens `length` to what is like the place. Waits for writers of the file. */
int pg_is_hole(int fd, uint64_t at, uint64_t *length, uint64_t end);

/* Whether the page cache has anything of a range: without, it is a hole, or has to be waited for.
 * Waits for nobody; also 1 where the kernel does not say. */
int pg_is_cached(int fd, uint64_t at, uint64_t length);

/* Whether reading the file may have to wait for a device or a server. */
int pg_may_wait(int fd);

#endif

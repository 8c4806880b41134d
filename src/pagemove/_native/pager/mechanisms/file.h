/* A file as a store. Offsets are those in the store; what is asked for lies within it. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_FILE_H
#define PAGEMOVE_PAGER_MECHANISMS_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "pager/mechanisms/store.h"

/* Whether the file is as long as it should be; for a device 0. */
int pg_file_has_all(const struct pg_store *store);

/* With `nowait`, -PG_NOT_NOW where that would have to wait for a device. All of it, or -errno,
 * -PG_SHORT. What `vector` has is used up. */
int pg_file_read(struct pg_store *store, uint64_t offset, struct iovec *vector, size_t used,
                 uint64_t total, int nowait);
int pg_file_write(struct pg_store *store, uint64_t offset, struct iovec *vector, size_t used,
                  uint64_t total);

/* From a file with holes: of these nothing, and the rest run by run. `got`: what was read. */
int pg_file_read_sparse(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                        size_t count, uint64_t total, uint64_t *got);

/* Whole pieces, also of a store that ends within the last: a part cannot be read directly. */
int pg_file_read_direct(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                        size_t count, uint64_t total);

#endif

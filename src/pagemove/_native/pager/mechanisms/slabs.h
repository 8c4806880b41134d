/* Memory for blocks of any size up to one: 64 classes of sizes, of small blocks fewer, each with
 * slabs of its own.
 *
 * A slab of class i is i pages, or i sixty-fourths of a block where those are larger, so that
 * objects fill it whatever their size. Objects know whose they are, and may be moved: as soon as
 * the free places of a class would make a slab, the emptiest is emptied and its pages are returned
 * to the kernel. So what is lost to free places is less than two slabs of each class in use, and
 * nothing of others.
 *
 * The caller has a lock for all of it.
 */
#ifndef PAGEMOVE_PAGER_MECHANISMS_SLABS_H
#define PAGEMOVE_PAGER_MECHANISMS_SLABS_H

#include <stddef.h>
#include <stdint.h>

struct pg_slabs;

/* Which object: valid until it is freed or moved. */
typedef uint64_t pg_place;

/* Called for an object that has been moved. */
typedef void pg_moved(void *context, uint32_t owner, pg_place place);

struct pg_slabs *pg_slabs_new(size_t block_size, int dumped, pg_moved *moved, void *context);
void pg_slabs_free(struct pg_slabs *slabs);

/* A place for so many bytes, of the block `owner`. 0; -ENOMEM; -ENOSPC: it would take more than
 * `most` bytes of memory altogether, even if `before` (with `has_before`) were freed. That one is
 * freed when there is place for the new one. */
int pg_slabs_put(struct pg_slabs *slabs, uint32_t owner, const void *bytes, size_t length,
                 uint64_t most, int has_before, pg_place before, pg_place *place);

void pg_slabs_drop(struct pg_slabs *slabs, pg_place place);

/* Have an object be that of another block. */
void pg_slabs_own(struct pg_slabs *slabs, pg_place place, uint32_t owner);

char *pg_slabs_at(const struct pg_slabs *slabs, pg_place place);

/* Bytes of the largest slab: no less than a block. */
size_t pg_slabs_largest(const struct pg_slabs *slabs);

/* Bytes of memory that all slabs take. */
uint64_t pg_slabs_bytes(const struct pg_slabs *slabs);

#endif

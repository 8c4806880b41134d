/* Blocks that stay, for as long as the user has them pinned. What region.h says of locks holds. */
#ifndef PAGEMOVE_PAGER_ENGINE_PIN_H
#define PAGEMOVE_PAGER_ENGINE_PIN_H

#include "pager/engine/region.h"

void pg_pins_free(struct pg_region *region);

/* A page of a pinned block is missing: fill it in. Drops the lock. */
void pg_refill(struct pg_region *region, uint64_t address);

/* Copy a pinned block to a slot, while it stays where it is. 0 or -errno. Drops the lock. */
struct pg_out;
int pg_copy_pinned(struct pg_region *region, struct pg_out *out);

/* The same of a block that the kernel does not move, for it is locked in memory (mlock), and of
 * which a part may be in `out`: it comes back, and is copied where it is. It is clean from here on,
 * and protected, so that a store meanwhile is seen. */
int pg_copy_in_place(struct pg_region *region, pg_entry entry, struct pg_out *out);

int pg_do_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write);

#endif

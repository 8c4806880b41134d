/* Compressed memory that a child made by fork has too: a copy, of the moment of the fork. */
#ifndef PAGEMOVE_PAGER_CARRIED_H
#define PAGEMOVE_PAGER_CARRIED_H

#include "pager/engine/region.h"

/* forks.c, around a fork, with the lock of all regions. Before it: have no block half-way, the
 * child have the region's memory, and nobody change it, until it is taken back in the parent. */
void pg_carry(struct pg_region *region);
void pg_carry_back(struct pg_region *region);

/* forks.c, in the child: whether it has that. */
int pg_is_carried(const struct pg_region *region);

/* forks.c, in the child, without the lock: the region goes on there, with threads and descriptors
 * of its own. Or it is there no more, and a touch says so. */
void pg_carry_on(struct pg_region *region);

/* setup.c, for a region that has a `former`. Before its mapping is registered: have nothing there
 * but what is resident. 0 or -errno. */
int pg_clear_carried(const struct pg_region *region);

/* Have what is there be its blocks. 0 or -ENOMEM. */
int pg_adopt_carried(struct pg_region *region);

#endif

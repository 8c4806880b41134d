/* A region's lease of a budget: its limit then changes. What region.h says of locks holds. */
#ifndef PAGEMOVE_PAGER_ENGINE_LEASE_H
#define PAGEMOVE_PAGER_ENGINE_LEASE_H

#include "pager/engine/region.h"

/* Enter the budget that a region is opened with, unless it is given up meanwhile. 0, or -errno;
 * then `text` says why. Needs no lock.
 */
int pg_lease_start(struct pg_region *region, int *given_up, char text[PG_TEXT]);

/* Leave it, when its memory is gone. Needs no lock. */
void pg_lease_end(struct pg_region *region);

/* One frame more is needed than the limit has: whether it has it by now. */
int pg_lease_more(struct pg_region *region);

/* Have room for so many frames to stay. 0, or -errno: others do not return enough. Drops the lock.
 */
int pg_lease_claim(struct pg_region *region, uint64_t frames);

/* More or fewer blocks are pinned than before, for which there is room. */
void pg_lease_note_floor(struct pg_region *region);

/* Frames that the region could have, and could pin. */
uint64_t pg_lease_reach(struct pg_region *region);
uint64_t pg_lease_claimable(struct pg_region *region);

/* Frames that it cannot do with less of (pin.c). */
uint64_t pg_frames_least(const struct pg_region *region);

/* Return what is wanted back, by evicting blocks. Needs no lock. */
void pg_do_shrink(struct pg_region *region);

#endif

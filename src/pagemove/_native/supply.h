/* Extents for objects: what is free, and what was freed and is kept to be used again. */
#ifndef PAGEMOVE_SUPPLY_H
#define PAGEMOVE_SUPPLY_H

#include "extents.h"

/* Whether the kernel alone serves the region so far. */
int pa_is_plain(const struct pa_arena *arena);

/* An extent of so many blocks, with room for so many times as many where there is plenty; as far
 * into a huge page as the extent `like`, if that is none of NONE. NONE: there is none. */
uint32_t pa_make_room(struct pa_arena *arena, uint32_t blocks, uint32_t times, uint32_t like);

/* Count a call that is refused; `full`, for want of room. Wants the lock. */
void pa_count_refused(struct pa_arena *arena, int full);

/* The youngest of the kept ones that has so many blocks, or a few more; else one that has half of
 * them at least, and room for the others, which are zeros then. NONE. Wants the lock. */
uint32_t pa_reuse(struct pa_arena *arena, uint32_t blocks);

/* Keep the extent of an object that was freed, unless too many are. Wants the lock. */
int pa_keep(struct pa_arena *arena, uint32_t first);

/* Before there are so many bytes more. 0, or -errno: that is more than may be resident, and it
 * cannot be evicted. */
int pa_hold_limit(struct pa_arena *arena, uint64_t more);

/* Have blocks of an extent that nobody else has be zeros. */
int pa_discard_blocks(struct pa_arena *arena, uint32_t first, uint32_t blocks);

/* Have an extent be free, and zeros. Without the lock: nobody has a smaller or larger one while it
 * is freed. */
void pa_discard_extent(struct pa_arena *arena, uint32_t first);

#endif

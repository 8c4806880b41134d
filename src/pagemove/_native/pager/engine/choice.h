/* What the policy (policy.h) is asked for a region. What region.h says of locks holds. */
#ifndef PAGEMOVE_PAGER_ENGINE_CHOICE_H
#define PAGEMOVE_PAGER_ENGINE_CHOICE_H

#include "pager/engine/region.h"

/* For one that is opened. */
void pg_choice_init(struct pg_region *region);

/* Adapt to how many frames are pinned, or leased. */
void pg_share_out(struct pg_region *region);

/* A block to leave, which may be dirty with `write`. PG_NONE: there is none, or without `only` none
 * whose writing would not begin with waiting for an earlier one. */
pg_entry pg_victim(struct pg_region *region, int write, int only);

/* The next of those that the kernel has refused to move. */
pg_entry pg_victim_aside(const struct pg_region *region, int write);
void pg_enlist(struct pg_region *region, pg_entry entry, int sequential);

/* A touch has found a block on standby. */
void pg_note_rescued(struct pg_region *region, pg_entry entry);

/* A block is needed that is not in memory. Whether it was in it lately, and used again. */
int pg_note_missed(struct pg_region *region, uint32_t number, int sequential);

#endif

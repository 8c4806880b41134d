/* Which block leaves first.
 *
 * The pager sees only touches of blocks that are not mapped, and sees them all the more if blocks
 * that are about to leave are unmapped a while before (STANDBY): a touch brings such a block back
 * without I/O, and shows that it is HOT. Others were needed ONCE, as far as is known; these leave
 * first while there are more of them than wanted, else the oldest that are hot. How many are wanted
 * follows from what is missed soon after it has left (ghosts.c).
 *
 * Blocks of long sequences are kept apart (RECENT, then SCAN): they leave newest first, once the
 * reader is some blocks past them, which recycles frames that are still in the cache, keeps a part
 * of what is read in a loop, and never pushes out anything else.
 */
#ifndef PAGEMOVE_PAGER_STATE_POLICY_H
#define PAGEMOVE_PAGER_STATE_POLICY_H

#include <stdint.h>

#include "pager/state/blocks.h"
#include "pager/state/frames.h"

/* Which blocks may be chosen, of those that are dirty. */
enum pg_choice {
    PG_CLEAN,    /* none */
    PG_ANSWERED, /* those of whose bytes no write is late */
    PG_ANY,
};

/* A block that has left. */
struct pg_ghost {
    uint32_t number;
    uint32_t evicted : 30; /* the eviction's number, modulo 2^30 */
    uint32_t kind : 2;
};

struct pg_policy {
    struct pg_blocks *blocks;
    const struct pg_frames *frames;
    int (*is_late)(const void *argument,
                   uint32_t number); /* whether a write of a block's bytes is */
    const void *argument;

    uint32_t recent_most, standby_wanted, scan_run;
    uint32_t scan_wanted, scan_least, scan_most; /* blocks of RECENT and SCAN together */
    uint32_t once_wanted;                        /* of ONCE */
    uint32_t shared;                             /* frames, of which those are parts */
    uint32_t window_most;                        /* blocks that are read ahead of a reader */
    double once_share, scan_share;
    int patient; /* what is dirty cannot be written now: it is worth while to look for what is not
                  */
    uint32_t scanned, oldest_first, random; /* scanned: at which eviction, the last time */

    /* What was learnt from blocks that were missed (ghosts.c). */
    struct pg_ghost *ghosts;
    uint32_t ghost_mask, evictions;
    uint32_t against_oldest, newest_since;
};

/* Share so many frames out among the lists: at most `standby_most` to those that are unmapped
 * before they leave, and `ahead_most` bytes or so to what is read ahead of a reader. */
void pg_policy_share(struct pg_policy *policy, uint32_t frames, uint64_t block_size,
                     uint64_t ahead_most, uint32_t standby_most);

/* A block to leave. PG_NONE: there is none, or it would take long to find one. */
pg_entry pg_choose(struct pg_policy *policy, enum pg_choice choice);

/* A block has come, or come back; to be kept with its like. */
void pg_keep(struct pg_policy *policy, pg_entry entry, int sequential);

/* Between which bounds it may be learnt how many blocks that were needed once stay. */
static inline uint32_t pg_least_once(uint32_t frames)
{
    return frames / 20;
}

static inline uint32_t pg_most_once(uint32_t frames)
{
    return frames - frames / 8;
}

/* ghosts.c */

/* Remember so many blocks that have left, or what comes near. 0 or -ENOMEM. */
int pg_ghosts_init(struct pg_policy *policy, uint32_t frames);
void pg_ghosts_free(struct pg_policy *policy);
uint64_t pg_ghosts_bytes(const struct pg_policy *policy);

/* A block leaves. */
void pg_remember(struct pg_policy *policy, pg_entry entry);

/* A block is needed that is not in memory, which has left lately: what it is to be. */
enum pg_missed { PG_NEW, PG_AGAIN, PG_AGAIN_HOT };
enum pg_missed pg_miss(struct pg_policy *policy, uint32_t number, int sequential);

#endif

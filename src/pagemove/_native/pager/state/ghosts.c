/* What blocks that are missed soon after they have left say about who should have left instead.
 *
 * Of as many blocks as the limit has frames it is remembered that they have left, and as what. One
 * that is missed would have stayed, had its list had more frames; so it gets some, at the expense
 * of the others. Lists of blocks that are used again and again prove their worth this way, and a
 * pattern that has changed is followed.
 */
#include <errno.h>
#include <stdlib.h>

#include "pager/region.h"

enum { FEWEST_GHOSTS = 64 };

/* What a block was when it left. */
enum kind {
    ONCE,
    HOT,
    NEWEST, /* of a sequence, in this order */
    OLDEST,
};

#define MOST_EVICTED ((UINT32_C(1) << 30) - 1)

int pg_ghosts_start(struct pg_region *region)
{
    uint32_t ghosts = FEWEST_GHOSTS;

    if (!region->limited)
        return 0;
    while (ghosts < region->frames_most && ghosts < UINT32_C(1) << 31)
        ghosts *= 2;
    region->ghosts = calloc(ghosts, sizeof *region->ghosts);
    region->ghost_mask = ghosts - 1;
    return region->ghosts ? 0 : -ENOMEM;
}

static struct pg_ghost *ghost_of(const struct pg_region *region, uint32_t number)
{
    return &region->ghosts[(number * UINT32_C(0x9E3779B1) >> 7) & region->ghost_mask];
}

static enum kind kind_of(const struct pg_region *region, const struct pg_block *block)
{
    if (block->flags & PG_SEQUENCE)
        return region->oldest_first ? OLDEST : NEWEST;
    return block->hot ? HOT : ONCE;
}

void pg_note_evicted(struct pg_region *region, pg_entry entry)
{
    const struct pg_block *block = &region->blocks.at[entry];

    region->evictions++;
    if (region->ghosts)
        *ghost_of(region, block->number) =
            (struct pg_ghost){.number = block->number,
                              .evicted = region->evictions & MOST_EVICTED,
                              .kind = kind_of(region, block)};
}

static uint32_t more(uint32_t value, uint32_t step, uint32_t most)
{
    return value + step < most ? value + step : most;
}

static uint32_t less(uint32_t value, uint32_t step, uint32_t least)
{
    return value > least + step ? value - step : least;
}

/* A stretch is read again, part of which has left. If that was the newest part, then because older
 * stretches stay, which may not be needed any more: these leave for a while. If some of them are
 * missed, it is a loop, of which a part can only stay if the newest part leaves. */
static void missed_of_sequence(struct pg_region *region, enum kind kind)
{
    uint32_t frames = region->frames.limit;

    region->scan_wanted = more(region->scan_wanted, frames / 64, region->scan_most);
    if (kind == OLDEST) {
        region->against_oldest++;
        if (region->against_oldest > frames / 32) {
            region->oldest_first = 0;
            region->newest_since = region->evictions;
        }
    } else if (region->evictions - region->newest_since >= frames) {
        region->oldest_first = frames;
        region->against_oldest = 0;
    }
}

int pg_note_missed(struct pg_region *region, uint32_t number, int sequential)
{
    uint32_t frames = region->frames.limit, age;
    const struct pg_ghost *ghost;

    if (!region->ghosts)
        return 0;
    ghost = ghost_of(region, number);
    age = (region->evictions - ghost->evicted) & MOST_EVICTED;
    if (!ghost->evicted || ghost->number != number || age >= frames)
        return 0;
    pg_member_reused(&region->member);
    if (pg_is_tight(region)) {
        if (age < frames / 2)
            region->oldest_first = frames;
        return 0;
    }
    if (ghost->kind == NEWEST || ghost->kind == OLDEST) {
        /* One that is touched by itself says nothing of how sequences are read. */
        if (sequential)
            missed_of_sequence(region, ghost->kind);
        return 0;
    }
    region->scan_wanted = less(region->scan_wanted, frames / 64, region->scan_least);
    /* That one is needed again which was needed once before is no wonder. That it is hot was seen:
     * that weighs more. */
    if (ghost->kind == ONCE)
        region->once_wanted = more(region->once_wanted, 1, pg_most_once(frames));
    else
        region->once_wanted = less(region->once_wanted, 2, pg_least_once(frames));
    return 1;
}

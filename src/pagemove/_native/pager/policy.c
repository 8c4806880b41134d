/* Which block leaves first.
 *
 * The pager sees only touches of blocks that are not mapped. So blocks of long sequences are kept
 * apart (RECENT, then SCAN): they leave newest first, once the reader is some blocks past them,
 * which recycles frames that are still in the cache, keeps a part of what is read in a loop, and
 * never pushes out anything else. All others (MAIN) leave oldest first, by way of STANDBY, where
 * a touch brings them back without I/O and makes them young: a second chance. If blocks are missed
 * that have left only lately, oldest first would have kept them: then SCAN does that for a while.
 */
#include <errno.h>
#include <stdlib.h>

#include "leaving.h"
#include "region.h"

enum { FEWEST_GHOSTS = 64, MOST_STEPS = 64 };

/* Which blocks may be chosen, of those that are dirty. */
enum dirty {
    NONE,
    ANSWERED, /* no write of their bytes is late */
    ANY,
};

static uint32_t clamp(uint64_t value, uint32_t least, uint32_t most)
{
    return value < least ? least : value > most ? most : (uint32_t)value;
}

void pg_policy_init(struct pg_region *region, uint32_t frames)
{
    uint64_t in_cache = (UINT64_C(8) << 20) / region->block_size;

    /* Far enough to hide the store behind the reader, and within an eighth of the limit. */
    region->window_most = clamp(clamp(in_cache, 4, 256), 1, clamp(frames / 8, 1, 256));
    region->recent_most = 2 * region->window_most + 2;
    region->scan_least = clamp(frames / 8, region->recent_most, UINT32_MAX);
    region->standby_wanted = region->limited ? clamp(frames / 16, 1, 1024) : 0;
    region->scan_run = 8;
}

int pg_policy_start(struct pg_region *region)
{
    uint32_t ghosts = FEWEST_GHOSTS;

    if (!region->limited)
        return 0;
    while (ghosts < region->frames_most / 2)
        ghosts *= 2;
    region->ghosts = calloc(ghosts, sizeof *region->ghosts);
    region->ghost_mask = ghosts - 1;
    return region->ghosts ? 0 : -ENOMEM;
}

/* What cannot leave now: its copy is being written, or it is dirty and must not be. */
static int stays(const struct pg_region *region, pg_entry entry, enum dirty dirty)
{
    const struct pg_block *block = &region->blocks.at[entry];

    if (block->flags & PG_FLUSHING)
        return 1;
    if (!(block->flags & PG_DIRTY) || dirty == ANY)
        return 0;
    return dirty == NONE ||
           pg_write_is_late(&region->store, block->number * region->block_size, region->block_size);
}

static pg_entry first_to_leave(const struct pg_region *region, enum pg_list list, int newest,
                               enum dirty dirty)
{
    const struct pg_blocks *blocks = &region->blocks;
    pg_entry entry = newest ? blocks->tail[list] : blocks->head[list];

    /* Where nearly all are dirty, writing some is quicker than finding one that is not. */
    for (int steps = 0; entry != PG_NONE && stays(region, entry, dirty); steps++) {
        if (steps == MOST_STEPS)
            return PG_NONE;
        entry = newest ? blocks->link[entry].prev : blocks->link[entry].next;
    }
    return entry;
}

/* Where few frames serve more blocks than there are, each leaves just before it is needed again, in
 * any fixed order. Chance breaks the circle; that it is often the newest keeps the others for
 * whoever needs many of them at once. */
static pg_entry any_to_leave(struct pg_region *region, enum dirty dirty)
{
    const struct pg_blocks *blocks = &region->blocks;
    pg_entry entry = blocks->head[PG_MAIN];

    region->random = region->random * 1664525 + 1013904223;
    if (region->random >> 31) {
        entry = blocks->tail[PG_MAIN];
        return entry != PG_NONE && !stays(region, entry, dirty) ? entry : PG_NONE;
    }
    for (uint32_t steps = (region->random >> 16) % (blocks->length[PG_MAIN] + 1);
         steps && entry != PG_NONE && blocks->link[entry].next != PG_NONE; steps--)
        entry = blocks->link[entry].next;
    return entry != PG_NONE && !stays(region, entry, dirty) ? entry : PG_NONE;
}

static pg_entry choose(struct pg_region *region, enum dirty dirty)
{
    struct pg_blocks *blocks = &region->blocks;
    pg_entry entry = PG_NONE;

    if (pg_is_tight(region) && region->oldest_first) {
        region->oldest_first--;
        entry = any_to_leave(region, dirty);
        if (entry != PG_NONE)
            return entry;
    }

    if (blocks->length[PG_RECENT] + blocks->length[PG_SCAN] > region->scan_least) {
        entry = first_to_leave(region, PG_SCAN, !region->oldest_first, dirty);
        if (entry != PG_NONE && region->oldest_first)
            region->oldest_first--;
    }
    if (entry == PG_NONE)
        entry = first_to_leave(region, PG_MAIN, 0, dirty);
    if (entry == PG_NONE)
        entry = first_to_leave(region, PG_SCAN, !region->oldest_first, dirty);
    if (entry == PG_NONE)
        entry = first_to_leave(region, PG_RECENT, 0, dirty);
    return entry;
}

pg_entry pg_victim(struct pg_region *region, int write, int only)
{
    int dirty = write && pg_may_write(region);
    pg_entry entry = choose(region, dirty ? ANSWERED : NONE);

    /* Whoever writes one whose last write is late waits for that: the others must not, too. */
    if (entry == PG_NONE && dirty && only && pg_has_helper(region))
        entry = choose(region, ANY);
    return entry;
}

void pg_enlist(struct pg_region *region, pg_entry entry, int sequential)
{
    struct pg_blocks *blocks = &region->blocks;

    if (!region->limited || pg_is_pinned(region, blocks->at[entry].number))
        return;
    /* With few frames nothing may be kept from leaving: the others would be too few. */
    sequential = sequential && !pg_is_tight(region);
    pg_push_tail(blocks, sequential ? PG_RECENT : PG_MAIN, entry);
    if (blocks->length[PG_RECENT] > region->recent_most)
        pg_push_tail(blocks, PG_SCAN, blocks->head[PG_RECENT]);
}

static struct pg_ghost *ghost_of(const struct pg_region *region, uint32_t number)
{
    return &region->ghosts[(number * UINT32_C(0x9E3779B1) >> 7) & region->ghost_mask];
}

void pg_note_evicted(struct pg_region *region, uint32_t number)
{
    region->evictions++;
    if (region->ghosts)
        *ghost_of(region, number) = (struct pg_ghost){number, region->evictions};
}

void pg_note_missed(struct pg_region *region, uint32_t number)
{
    const struct pg_ghost *ghost;

    if (!region->ghosts)
        return;
    ghost = ghost_of(region, number);
    if (ghost->evicted && ghost->number == number &&
        region->evictions - ghost->evicted < region->frames.limit / 2) {
        region->oldest_first = region->frames.limit;
        pg_member_reused(&region->member);
    }
}

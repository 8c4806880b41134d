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
#include "pager/engine/leaving.h"
#include "pager/region.h"

enum {
    MOST_STEPS = 64,
    MOST_STANDBY = 16384,         /* slots have numbers of 16 bits */
    MOST_STANDBY_REMAPPED = 1024, /* each slot is a mapping of its own */
};

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

/* With fewer it is seldom known in time what is hot. With twice as many a few per cent less is read
 * where what is hot nearly fills memory, and everywhere there are more faults without I/O, each of
 * which costs most of what reading a block from the page cache does. */
static uint32_t standby_of(const struct pg_region *region, uint32_t frames)
{
    if (frames < PG_TIGHT)
        return 1;
    return clamp(frames / 16, 1, region->uffd.moves ? MOST_STANDBY : MOST_STANDBY_REMAPPED);
}

void pg_policy_init(struct pg_region *region, uint32_t frames)
{
    uint64_t in_cache = (UINT64_C(8) << 20) / region->block_size;

    /* What was learnt is kept as shares: the limit of a region with a budget comes and goes, down
     * to where there is nothing to share. */
    if (!region->policy_frames)
        region->once_share = 0.25;
    if (region->policy_frames >= PG_TIGHT) {
        region->once_share = (double)region->once_wanted / region->policy_frames;
        region->scan_share = (double)region->scan_wanted / region->policy_frames;
    }
    region->policy_frames = frames;
    /* Far enough to hide the store behind the reader, and within an eighth of the limit. */
    region->window_most = clamp(clamp(in_cache, 4, 256), 1, clamp(frames / 8, 1, 256));
    region->recent_most = 2 * region->window_most + 2;
    region->scan_least = clamp(frames / 8, region->recent_most, UINT32_MAX);
    region->scan_most = clamp(frames - frames / 8, region->scan_least, UINT32_MAX);
    region->scan_wanted =
        clamp((uint64_t)(region->scan_share * frames), region->scan_least, region->scan_most);
    region->once_wanted =
        clamp((uint64_t)(region->once_share * frames), pg_least_once(frames), pg_most_once(frames));
    region->standby_wanted = region->limited ? standby_of(region, frames) : 0;
    region->scan_run = 8;
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
    pg_entry entry = blocks->head[PG_ONCE];

    region->random = region->random * 1664525 + 1013904223;
    if (region->random >> 31) {
        entry = blocks->tail[PG_ONCE];
        return entry != PG_NONE && !stays(region, entry, dirty) ? entry : PG_NONE;
    }
    for (uint32_t steps = (region->random >> 16) % (blocks->length[PG_ONCE] + 1);
         steps && entry != PG_NONE && blocks->link[entry].next != PG_NONE; steps--)
        entry = blocks->link[entry].next;
    return entry != PG_NONE && !stays(region, entry, dirty) ? entry : PG_NONE;
}

/* Whether blocks of sequences are to leave before others: there are many of them, or none has come
 * for as long as it takes to replace everything. */
static int too_many_scanned(const struct pg_region *region)
{
    return region->blocks.length[PG_RECENT] + region->blocks.length[PG_SCAN] >
               region->scan_wanted ||
           region->evictions - region->scanned > region->frames.limit;
}

static pg_entry choose(struct pg_region *region, enum dirty dirty)
{
    struct pg_blocks *blocks = &region->blocks;
    int once = blocks->length[PG_ONCE] >= region->once_wanted;
    pg_entry entry = PG_NONE;

    if (pg_is_tight(region) && region->oldest_first) {
        region->oldest_first--;
        entry = any_to_leave(region, dirty);
        if (entry != PG_NONE)
            return entry;
    }

    if (too_many_scanned(region)) {
        entry = first_to_leave(region, PG_SCAN, !region->oldest_first, dirty);
        if (entry != PG_NONE && region->oldest_first)
            region->oldest_first--;
    }
    if (entry == PG_NONE)
        entry = first_to_leave(region, once ? PG_ONCE : PG_HOT, 0, dirty);
    if (entry == PG_NONE)
        entry = first_to_leave(region, once ? PG_HOT : PG_ONCE, 0, dirty);
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
    if (pg_is_tight(region)) {
        pg_push_tail(blocks, PG_ONCE, entry);
    } else if (sequential) {
        region->scanned = region->evictions;
        pg_push_tail(blocks, PG_RECENT, entry);
    } else {
        pg_push_tail(blocks, blocks->at[entry].hot ? PG_HOT : PG_ONCE, entry);
    }
    if (blocks->length[PG_RECENT] > region->recent_most)
        pg_push_tail(blocks, PG_SCAN, blocks->head[PG_RECENT]);
}

void pg_note_rescued(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];

    region->counters.rescued++;
    pg_member_reused(&region->member);
    block->hot = !(block->flags & PG_SEQUENCE);
}

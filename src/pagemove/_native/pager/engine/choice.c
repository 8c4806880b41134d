#include "pager/engine/choice.h"

#include "pager/engine/leaving.h"
#include "pager/mechanisms/channel.h"
#include "pager/mechanisms/compressed.h"

enum {
    LARGEST_READ = 2 << 20,
    MOST_AHEAD = 8 << 20,
    /* A reader hardly waits for what is compressed in memory, and frames of blocks that are ahead
     * of it, or just behind, hold nothing of what is read again. */
    MOST_AHEAD_COMPRESSED = LARGEST_READ,
    MOST_STANDBY = 16384,         /* slots have numbers of 16 bits */
    MOST_STANDBY_REMAPPED = 1024, /* each slot is a mapping of its own */
};

static int is_late(const void *argument, uint32_t number)
{
    const struct pg_region *region = argument;

    return pg_write_is_late(&region->store, number * region->block_size, region->block_size);
}

void pg_choice_init(struct pg_region *region)
{
    region->policy = (struct pg_policy){.blocks = &region->blocks,
                                        .frames = &region->frames,
                                        .is_late = is_late,
                                        .argument = region};
}

/* Blocks of one read: not so many that nothing is left for the others. */
static uint32_t most_at_once(const struct pg_region *region, uint64_t frames)
{
    uint64_t most = LARGEST_READ / region->block_size;

    most = most < PG_PIECES ? most : PG_PIECES;
    if (pg_has_helper(region) &&
        most > pg_channel_bytes(region->store.channel) / region->workers / region->block_size)
        most = pg_channel_bytes(region->store.channel) / region->workers / region->block_size;
    most = most < frames / 4 ? most : frames / 4;
    return most ? (uint32_t)most : 1;
}

void pg_share_out(struct pg_region *region)
{
    uint32_t frames = pg_frames_shared(&region->frames);
    int in_memory = region->store.compressed && !pg_compressed_spills(region->store.compressed);

    frames = frames < region->frames_most ? frames : region->frames_most;
    pg_policy_share(&region->policy, frames, region->block_size,
                    in_memory ? MOST_AHEAD_COMPRESSED : MOST_AHEAD,
                    region->uffd.moves ? MOST_STANDBY : MOST_STANDBY_REMAPPED);
    region->chunk_most = most_at_once(region, frames);
}

pg_entry pg_victim(struct pg_region *region, int write, int only)
{
    int dirty = write && pg_may_write(region);
    pg_entry entry;

    region->policy.patient = region->write_error != 0;
    entry = pg_choose(&region->policy, dirty ? PG_ANSWERED : PG_CLEAN);

    /* Whoever writes one whose last write is late waits for that: the others must not, too. */
    if (entry == PG_NONE && dirty && only && pg_has_helper(region))
        entry = pg_choose(&region->policy, PG_ANY);
    return entry;
}

pg_entry pg_victim_aside(const struct pg_region *region, int write)
{
    pg_entry entry = region->blocks.head[PG_STUCK];
    const struct pg_block *block = &region->blocks.at[entry == PG_NONE ? 0 : entry];

    if (entry == PG_NONE || block->flags & PG_COPY_IN_FLIGHT)
        return PG_NONE;
    if (!(block->flags & PG_DIRTY))
        return entry;
    return write && pg_may_write(region) && !is_late(region, block->number) ? entry : PG_NONE;
}

void pg_enlist(struct pg_region *region, pg_entry entry, int sequential)
{
    if (pg_is_pinned(region, region->blocks.at[entry].number))
        return;
    if (region->blocks.at[entry].in_place)
        pg_push_tail(&region->blocks, PG_IN_PLACE, entry);
    else if (region->frames.limited)
        pg_keep(&region->policy, entry, sequential);
}

void pg_note_rescued(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];

    region->counters.rescued++;
    pg_member_reused(&region->member);
    block->hot = !(block->flags & PG_SEQUENCE);
}

int pg_note_missed(struct pg_region *region, uint32_t number, int sequential)
{
    enum pg_missed missed = pg_miss(&region->policy, number, sequential);

    if (missed != PG_NEW)
        pg_member_reused(&region->member);
    return missed == PG_AGAIN_HOT;
}

/* Slots for blocks on their way, and room for one more frame, at the expense of others. */

#include "pager/engine/arriving.h"
#include "pager/engine/lease.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"

uint16_t pg_slot_for_block(struct pg_region *region)
{
    uint16_t slot = pg_take_full(&region->frames);

    if (slot == PG_NO_SLOT && !pg_has_room(&region->frames))
        pg_lease_more(region);
    if (slot == PG_NO_SLOT)
        slot = pg_take_fresh(&region->frames);
    if (slot == PG_NO_SLOT && region->frames.limited)
        slot = pg_reclaim(region, 0);
    return slot;
}

uint16_t pg_slot_to_move_into(struct pg_region *region)
{
    uint16_t slot = pg_take_outgoing(&region->frames), full;

    while (slot == PG_NO_SLOT && (full = pg_take_full(&region->frames)) != PG_NO_SLOT) {
        pg_give_up(&region->frames, full);
        slot = pg_take_outgoing(&region->frames);
    }
    return slot;
}

void pg_slot_back(struct pg_region *region, uint16_t slot, int whole)
{
    /* Without a limit nothing leaves to make use of many of these again. */
    if (whole && (region->frames.limited || region->frames.full.count < PG_BATCH))
        pg_give_full(&region->frames, slot);
    else
        pg_give_up(&region->frames, slot);
    pg_frame_available(region);
    pthread_cond_broadcast(&region->changed);
}

int pg_empty_one(struct pg_region *region, int write)
{
    uint16_t slot = pg_take_full(&region->frames);
    uint32_t before = region->frames.total;

    if (slot == PG_NO_SLOT && region->frames.limited)
        slot = pg_reclaim(region, write);
    /* Blocks that stay in place leave frames, and no slot. */
    if (slot == PG_NO_SLOT)
        return pg_has_room(&region->frames) || region->frames.total < before ? 0 : -PG_NOT_NOW;
    pg_give_up(&region->frames, slot);
    return 0;
}

/* Whether there may be one frame more. */
static int has_room(struct pg_region *region)
{
    return pg_has_room(&region->frames) || pg_lease_more(region);
}

int pg_make_room(struct pg_region *region, int write)
{
    int error = 0;

    /* A frame in a slot saves whoever comes next the zeroing of a new one. */
    while (!error && !has_room(region))
        if (region->frames.full.count > PG_BATCH || !region->frames.limited ||
            !pg_drop_unmoved(region))
            error = pg_empty_one(region, write);
    return error;
}

int pg_make_room_gently(struct pg_region *region)
{
    uint16_t slot;

    if (!pg_is_tight(&region->frames) || region->huge)
        return pg_make_room(region, 0);
    while (!has_room(region)) {
        slot = pg_take_full(&region->frames);
        if (slot == PG_NO_SLOT)
            return -PG_NOT_NOW;
        pg_give_up(&region->frames, slot);
    }
    return 0;
}

/* Blocks become others: what an object of an arena consists of goes where there is room to grow.
 * Pages move, what the store has of a block is kept under another number, and nothing is read. */
#include <errno.h>

#include "pager/engine/arriving.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"

/* 0: nobody is about to change the state of the block. -EBUSY: it has to stay. Drops the lock. */
static int wait_for_block(struct pg_region *region, uint32_t number, uint64_t until)
{
    for (;;) {
        pg_entry entry = pg_find(&region->blocks, number);
        const struct pg_block *block = &region->blocks.at[entry == PG_NONE ? 0 : entry];

        if (pg_is_pinned(region, number) || pg_is_late(region, number))
            return -EBUSY;
        if (entry == PG_NONE)
            return 0;
        if (block->state == PG_ERROR)
            return -EIO;
        if (!pg_is_busy(block))
            return 0;
        if (pg_wait_changed(region, until))
            return -EBUSY;
    }
}

/* What is in memory of a block. 0 or -errno: it is where it was. */
static int shift_entry(struct pg_region *region, pg_entry entry, uint32_t to)
{
    struct pg_out out;
    int resident = region->blocks.at[entry].state == PG_RESIDENT, error;

    if (resident) {
        error = pg_take_out(region, entry, &out);
        if (error)
            return error;
    }
    pg_renumber(&region->blocks, entry, to);
    if (!resident)
        return 0; /* it moves in when it is touched */
    out.number = to;
    pg_put_back(region, &out);
    return 0;
}

/* Drops the lock. */
static int shift_block(struct pg_region *region, uint32_t to, uint32_t from, uint64_t until)
{
    int error = wait_for_block(region, from, until), stored;
    pg_entry entry = pg_find(&region->blocks, from);

    if (error)
        return error;
    if (pg_find(&region->blocks, to) != PG_NONE || pg_is_noted(region, to) ||
        pg_is_pinned(region, to))
        return -EEXIST;
    stored = pg_is_noted(region, from);
    error = stored ? pg_store_shift(&region->store, to, from) : 0;
    if (error)
        return error;
    error = entry == PG_NONE ? 0 : shift_entry(region, entry, to);
    if (error && stored)
        pg_store_shift(&region->store, from, to);
    if (error || !stored)
        return error;
    pg_note_forgotten(region, from);
    pg_note_stored(region, to);
    return 0;
}

uint32_t pg_shift_blocks(struct pg_region *region, uint32_t to, uint32_t from, uint32_t count)
{
    uint64_t until = pg_overdue(region, pg_overdue(region, pg_now()));
    uint32_t done = 0;

    if (!region->blank)
        return 0;
    pg_look_at_merging(region);
    while (done < count && !shift_block(region, to + done, from + done, until))
        done++;
    pthread_cond_broadcast(&region->changed);
    return done;
}

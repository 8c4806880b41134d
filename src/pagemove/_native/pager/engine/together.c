/* Blocks that follow each other move together: one call for all, and one flush of the TLB, which
 * interrupts other CPUs. What does not move so is left to whoever moves single blocks. */
#include <stdlib.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"

static int by_slot(const void *one, const void *other)
{
    return *(const uint16_t *)one - *(const uint16_t *)other;
}

void pg_sort_slots(uint16_t *slots, size_t count)
{
    qsort(slots, count, sizeof *slots, by_slot);
}

/* How many of these blocks one move can bring in. */
static size_t movable(const struct pg_region *region, const pg_entry *entries,
                      const uint16_t *slots, size_t count)
{
    uint64_t first = pg_slot_address(&region->frames, slots[0]);
    size_t n = 0;

    for (; n < count; n++)
        if (region->blocks.at[entries[n]].flags & (PG_DIRTY | PG_PARTIAL) ||
            !pg_is_to_move(region, entries[n]) ||
            pg_slot_address(&region->frames, slots[n]) != first + n * region->block_size)
            break;
    return n;
}

size_t pg_install_together(struct pg_region *region, const pg_entry *entries, const uint16_t *slots,
                           size_t count, int *unshown)
{
    size_t n = pg_is_lost(region) ? 0 : movable(region, entries, slots, count);
    int64_t moved;

    if (n < 2)
        return 0;
    moved = pg_move_some(&region->uffd, PG_CALL_MOVE_IN,
                         pg_block_address(region, region->blocks.at[entries[0]].number),
                         pg_slot_address(&region->frames, slots[0]), n * region->block_size);
    n = moved > 0 ? (size_t)moved / region->block_size : 0;
    *unshown |= moved > 0 && region->uffd.read_only;
    for (size_t i = 0; i < n; i++) {
        if (pg_writable(region))
            pg_set_dirty(&region->blocks, entries[i], 1);
        pg_give_empty(&region->frames, slots[i]);
        pg_installed(region, entries[i]);
    }
    return n;
}

static int by_number(const void *one, const void *other)
{
    uint32_t a = (*(struct pg_out *const *)one)->number;
    uint32_t b = (*(struct pg_out *const *)other)->number;

    return a < b ? -1 : a > b;
}

/* Blocks from the first on that follow each other, as their slots do. */
static size_t run_of(const struct pg_region *region, struct pg_out *const *outs, size_t count)
{
    uint64_t slot = pg_slot_address(&region->frames, outs[0]->slot);
    size_t n = 1;

    while (n < count && outs[n]->number == outs[0]->number + n &&
           pg_slot_address(&region->frames, outs[n]->slot) == slot + n * region->block_size)
        n++;
    return n;
}

void pg_move_together(struct pg_region *region, struct pg_out *outs, size_t count)
{
    struct pg_out *sorted[PG_BATCH];
    uint16_t slots[PG_BATCH];
    uint64_t size = region->block_size;

    if (!region->uffd.moves || count < 2)
        return;
    for (size_t i = 0; i < count; i++) {
        sorted[i] = &outs[i];
        slots[i] = outs[i].slot;
    }
    qsort(sorted, count, sizeof *sorted, by_number);
    pg_sort_slots(slots, count);
    for (size_t i = 0; i < count; i++)
        sorted[i]->slot = slots[i];
    for (size_t i = 0, n; i < count; i += n) {
        int64_t moved = 0;
        n = run_of(region, &sorted[i], count - i);
        if (n > 1)
            moved = pg_move_some(&region->uffd, PG_CALL_MOVE_OUT,
                                 pg_slot_address(&region->frames, sorted[i]->slot),
                                 pg_block_address(region, sorted[i]->number), n * size);
        for (size_t k = 0; moved > 0; k++, moved -= (int64_t)size) {
            sorted[i + k]->begun = (uint64_t)moved < size ? (uint64_t)moved : size;
            pg_add(&sorted[i + k]->pages, 0,
                   (unsigned)(sorted[i + k]->begun / region->uffd.page_size));
        }
    }
}

int pg_move_rest(struct pg_region *region, struct pg_out *out)
{
    uint64_t slot = pg_slot_address(&region->frames, out->slot), page = region->uffd.page_size;
    uint64_t address = pg_block_address(region, out->number),
             left = region->block_size - out->begun;
    unsigned first = (unsigned)(out->begun / page);
    struct pg_pages rest;
    int error = pg_move_out(&region->uffd, slot + out->begun, address + out->begun, left, &rest);

    for (unsigned i = 0; i < left / page; i++)
        if (pg_has(&rest, i))
            pg_add(&out->pages, first + i, 1);
    return error;
}

/* Whether nothing of a block would be lost. A store that is under way finds it protected, and waits
 * for whoever holds the lock; one that comes later finds no page. */
static int may_drop(const struct pg_region *region, pg_entry entry)
{
    const struct pg_block *block = &region->blocks.at[entry];

    return block->flags & PG_SEQUENCE && !(block->flags & PG_DIRTY) &&
           pg_is_protected(region, block->number);
}

unsigned pg_drop_unmoved(struct pg_region *region)
{
    pg_entry entries[PG_BATCH], entry;
    unsigned most = pg_batch(region), count = 0;
    uint32_t first = 0, number;
    int error;

    if (region->staying || pg_is_lost(region))
        return 0;
    pg_look_at_merging(region);
    while (count < most) {
        /* Where a changed one is due, it is not to stay at the expense of these. */
        entry = pg_victim(region, 1, 0);
        if (entry == PG_NONE || !may_drop(region, entry))
            break;
        number = region->blocks.at[entry].number;
        if (count && number + 1 != first && number != first + count)
            break;
        first = count && first < number ? first : number;
        pg_unlist(&region->blocks, entry);
        entries[count++] = entry;
    }
    if (!count)
        return 0;
    error = pg_discard_unlocked(pg_block_address(region, first), count * region->block_size);
    for (unsigned i = 0; i < count; i++) {
        if (error) {
            pg_enlist(region, entries[i], 1);
        } else {
            pg_forget_evicted(region, entries[i]);
            pg_count_frame(&region->frames, -1);
        }
    }
    if (error)
        return 0;
    pg_frame_available(region);
    return count;
}

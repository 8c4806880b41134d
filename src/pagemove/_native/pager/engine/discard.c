/* Blocks of zeros that no store has, and blocks that the program has freed and become that.
 *
 * A region that is opened blank keeps a bit for each block that its store, or its spill file, has
 * something of. Others are filled with zeros, and the store is not asked. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/engine/arriving.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "uapi.h"

/* Bytes that are discarded before others may have the lock. */
enum { AT_ONCE = 4 << 20 };

static uint64_t bytes_of_bits(const struct pg_region *region)
{
    return (region->nblocks / 64 + 1) * sizeof(uint64_t);
}

uint64_t *pg_new_bits(const struct pg_region *region)
{
    void *bits = mmap(NULL, bytes_of_bits(region), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return bits == MAP_FAILED ? NULL : bits;
}

void pg_free_bits(const struct pg_region *region, uint64_t *bits)
{
    if (bits)
        munmap(bits, bytes_of_bits(region));
}

static int has_bit(const uint64_t *bits, uint32_t number)
{
    return __atomic_load_n(&bits[number / 64], __ATOMIC_ACQUIRE) >> number % 64 & 1;
}

int pg_is_noted(const struct pg_region *region, uint32_t number)
{
    return region->spilled && has_bit(region->spilled, number);
}

void pg_note_stored(struct pg_region *region, uint32_t number)
{
    __atomic_fetch_or(&region->spilled[number / 64], UINT64_C(1) << number % 64, __ATOMIC_RELEASE);
}

void pg_note_forgotten(struct pg_region *region, uint32_t number)
{
    __atomic_fetch_and(&region->spilled[number / 64], ~(UINT64_C(1) << number % 64),
                       __ATOMIC_RELEASE);
}

uint64_t *pg_own_blocks(struct pg_region *region)
{
    if (!region->owned)
        region->owned = pg_new_bits(region);
    return region->owned;
}

int pg_is_owned(const struct pg_region *region, uint32_t number)
{
    return !region->owned || has_bit(region->owned, number);
}

int pg_is_blank(const struct pg_region *region, uint32_t number)
{
    return region->blank && !pg_is_noted(region, number);
}

void pg_blank_slots(const struct pg_region *region, const uint16_t *slots, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        void *slot = (void *)(uintptr_t)pg_slot_address(&region->frames, slots[i]);
        /* One trap instead of one a page, where there is no memory yet. */
        if (pg_is_fresh_slot(&region->frames, slots[i]))
            madvise(slot, region->block_size, MADV_POPULATE_WRITE);
        memset(slot, 0, region->block_size);
    }
}

/* 0, or -EBUSY: its contents cannot be given up. 1: not yet; it has been waited for. May drop the
 * lock. */
static int try_block(struct pg_region *region, uint32_t number, uint64_t until)
{
    pg_entry entry = pg_find(&region->blocks, number);
    const struct pg_block *block = &region->blocks.at[entry == PG_NONE ? 0 : entry];

    if (pg_is_pinned(region, number) || pg_is_late(region, number))
        return -EBUSY;
    if (entry == PG_NONE)
        return 0;
    if (!pg_is_busy(block))
        return 0;
    return pg_wait_changed(region, until) ? -EBUSY : 1;
}

static void drop(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint16_t slot = block->slot;

    pg_unlist(&region->blocks, entry);
    if (block->state == PG_STAGED)
        pg_slot_back(region, slot, 0);
    else if (block->in_place)
        pg_forget_place(region, entry);
    else if (block->state == PG_RESIDENT)
        pg_count_frame(&region->frames, -1);
    pg_become(&region->blocks, entry, PG_ABSENT);
}

/* Pages that belong to no block any more. What was locked in memory (mlock) is not from here on, as
 * if it had been unmapped: whoever has the addresses next has not asked for that. */
static void give_up_pages(struct pg_region *region, uint32_t first, uint32_t end)
{
    uint64_t start = pg_block_address(region, first), length = (end - first) * region->block_size;

    if (!pg_discard_unlocked(start, length) && !region->uffd.poisoned)
        return;
    munlock((void *)(uintptr_t)start, length);
    pg_discard(&region->uffd, start, length);
}

/* Drops the lock. `stored`: the store has something of them, which is not read any more. */
static int discard_some(struct pg_region *region, uint32_t first, uint32_t end, int *stored)
{
    uint64_t until = pg_overdue(region, pg_overdue(region, pg_now()));
    int busy = 0;

    for (uint32_t number = first; number < end; number++) {
        busy = try_block(region, number, until);
        if (busy < 0)
            return busy;
        /* It took the lock away: those before may have changed. */
        if (busy)
            number = first - 1;
    }
    for (uint32_t number = first; number < end; number++) {
        pg_entry entry = pg_find(&region->blocks, number);
        /* Together with the block: read-ahead would bring back what the store still has. */
        if (pg_is_noted(region, number)) {
            pg_note_forgotten(region, number);
            *stored = 1;
        }
        if (entry != PG_NONE)
            drop(region, entry);
    }
    give_up_pages(region, first, end);
    pg_frame_available(region);
    pthread_cond_broadcast(&region->changed);
    return 0;
}

/* Frames that were kept to be recycled: all but one batch, and without any block all. */
static void give_up_spare(struct pg_region *region)
{
    while (region->frames.full.count > (region->blocks.count ? PG_BATCH : 0))
        pg_give_up(&region->frames, pg_take_full(&region->frames));
}

int pg_drop_blocks(struct pg_region *region, uint64_t offset, uint64_t length, int *stored)
{
    uint32_t first = (uint32_t)(offset / region->block_size);
    uint32_t end = (uint32_t)((offset + length) / region->block_size);
    uint32_t step = AT_ONCE / (uint32_t)region->block_size;
    int error = 0;

    *stored = 0;
    if (!region->blank || offset % region->block_size || length % region->block_size ||
        end > region->nblocks)
        return -EINVAL;
    for (uint32_t at = first; at < end && !error; at += step) {
        uint32_t to = end - at < step ? end : at + step;

        pthread_mutex_lock(&region->lock);
        if (region->plain)
            give_up_pages(region, at, to);
        else
            error = discard_some(region, at, to, stored);
        give_up_spare(region);
        pthread_mutex_unlock(&region->lock);
    }
    return error;
}

int pg_do_forget(struct pg_region *region, uint64_t offset, uint64_t length)
{
    struct pg_store *store = region->mode == PG_PRIVATE ? &region->spill : &region->store;

    /* What it keeps all the same is never read: that its blocks are zeros is noted already. */
    pg_store_forget(store, offset, length, region->block_size);
    return 0;
}

/* Blocks arrive: read into a slot, then moved or copied into the region. */
#include <errno.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/faults.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/copies.h"
#include "pager/mechanisms/trace.h"

int pg_read_blocks(struct pg_region *region, uint32_t first, const uint16_t *slots, size_t count,
                   int nowait)
{
    struct pg_piece pieces[PG_PIECES];
    struct pg_store *store = pg_is_spilled(region, first) ? &region->spill : &region->store;
    uint64_t offset = first * region->block_size, got, began = pg_trace_begin();
    int error;

    if (pg_is_blank(region, first)) {
        pg_blank_slots(region, slots, count);
        return 0;
    }
    for (size_t i = 0; i < count; i++)
        pieces[i] = (struct pg_piece){(void *)(uintptr_t)pg_slot_address(&region->frames, slots[i]),
                                      region->block_size};
    error = pg_store_read(store, offset, pieces, count, nowait, &got);
    if (error != -PG_NOT_NOW)
        pg_trace_since(region->base, PG_TRACE_READ, offset, count * region->block_size, began,
                       error);
    if (error)
        return error;
    __atomic_add_fetch(&region->bytes_read, got, __ATOMIC_RELAXED);
    pg_member_missed(&region->member, got);
    return 0;
}

/* The ways into the region. 0, or -errno: a part of the block is there, and the slot has the rest.
 */

/* What is in the slot page by page, each of which leaves it. Where that is a copy, it takes a page
 * more than a move, and no frame: with few frames another block would have to leave, which may be
 * one that the same instruction needs; with none to be had, whoever waits for one holds what others
 * wait for. */
static int install_pages(struct pg_region *region, uint64_t address, uint16_t slot, int protect)
{
    int error = pg_bring_in(&region->uffd, address, pg_slot_address(&region->frames, slot),
                            region->block_size, protect);

    if (!error)
        pg_give_empty(&region->frames, slot);
    return error;
}

static int install_copy(struct pg_region *region, uint64_t address, uint16_t slot, int protect)
{
    uint64_t from = pg_slot_address(&region->frames, slot);
    int error;

    if (pg_make_room_gently(region))
        return install_pages(region, address, slot, protect);
    error = pg_copy_in(&region->uffd, address, from, region->block_size, protect);
    if (error)
        return error;
    pg_count_frame(&region->frames, 1);
    pg_give_full(&region->frames, slot);
    return 0;
}

static int install_move(struct pg_region *region, uint64_t address, uint16_t slot, int *unshown)
{
    int error = pg_move_in(&region->uffd, address, pg_slot_address(&region->frames, slot),
                           region->block_size, unshown != NULL);

    if (unshown)
        *unshown = region->uffd.read_only;
    if (!error)
        pg_give_empty(&region->frames, slot);
    return error;
}

/* A block that could not be installed whole. Threads may have stored into what is there of one that
 * is not protected: then each page is to be in one place only, and the rest follows. Any other is
 * taken away again: it is as if it had not arrived. */
static void undo_install(struct pg_region *region, pg_entry entry, uint16_t *slot)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint64_t address = pg_block_address(region, block->number);
    uint64_t from = pg_slot_address(&region->frames, *slot);
    struct pg_pages pages;

    if (block->flags & PG_DIRTY) {
        pg_give_up_copied(&region->uffd, address, from, region->block_size);
        return;
    }
    pg_discard(&region->uffd, address, region->block_size);
    if (pg_pages_in(&region->uffd, from, region->block_size, &pages) ||
        !pg_is_whole(region, &pages)) {
        pg_note_dropped(region, entry);
        pg_slot_back(region, *slot, 0);
        *slot = PG_NO_SLOT;
    }
}

/* Pages of a resident block that the user has discarded: only these are filled in. */
static int install_rest(struct pg_region *region, pg_entry entry, uint64_t address, uint16_t slot)
{
    int protect = !(region->blocks.at[entry].flags & PG_DIRTY);
    int error = pg_copy_in(&region->uffd, address, pg_slot_address(&region->frames, slot),
                           region->block_size, protect);

    if (!error)
        pg_give_full(&region->frames, slot);
    return error;
}

void pg_installed(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];

    block->slot = PG_NO_SLOT;
    block->flags &= (uint8_t)~(PG_WANTED | PG_WRITE_WANTED | PG_PARTIAL);
    pg_become(&region->blocks, entry, PG_RESIDENT);
    pthread_cond_broadcast(&region->changed);
}

/* Whether a block is to be there without write-protection, as if it had been stored to. What is
 * compressed to one word is found to be the same in less time than a protected copy takes. */
static int is_to_be_dirty(const struct pg_region *region, const struct pg_block *block)
{
    return pg_writable(region) &&
           (block->flags & PG_WRITE_WANTED ||
            (region->store.compressed && !region->stores_only &&
             pg_compressed_is_same(region->store.compressed, block->number)));
}

int pg_is_to_move(const struct pg_region *region, pg_entry entry)
{
    const struct pg_block *block = &region->blocks.at[entry];

    if (pg_writable(region) && !is_to_be_dirty(region, block))
        return 0;
    return region->uffd.moves && !region->uffd.wary &&
           (region->block_size >= PG_MOVE_FRESH_FROM || !pg_has_room(&region->frames));
}

static int install_whole(struct pg_region *region, pg_entry entry, uint16_t *slot, int *unshown)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint64_t address = pg_block_address(region, block->number);
    int stored = is_to_be_dirty(region, block), error;

    if (block->flags & PG_DIRTY)
        /* What is in the slot is newer than the store; a part may be in the region already. */
        error = install_pages(region, address, *slot, 0);
    else if (pg_is_to_move(region, entry))
        error = install_move(region, address, *slot, unshown);
    else
        error = install_copy(region, address, *slot, !stored);
    if (stored)
        pg_set_dirty(&region->blocks, entry, 1);
    if (error)
        undo_install(region, entry, slot);
    return error;
}

/* Into a region that is lost. What was discarded of a block nobody will read; what was changed goes
 * where it is found by whoever saves it. */
static int install_lost(struct pg_region *region, pg_entry entry, uint16_t *slot)
{
    const struct pg_block *block = &region->blocks.at[entry];
    int error;

    if (block->flags & PG_PARTIAL) {
        pg_slot_back(region, *slot, 1);
        return 0;
    }
    error = pg_bring_in_lost(region, pg_block_address(region, block->number),
                             pg_slot_address(&region->frames, *slot));
    if (error)
        undo_install(region, entry, slot);
    else
        pg_give_empty(&region->frames, *slot);
    return error;
}

int pg_install(struct pg_region *region, pg_entry entry, uint16_t *slot, int *unshown)
{
    struct pg_block *block = &region->blocks.at[entry];
    int error;

    if (pg_is_lost(region))
        error = install_lost(region, entry, slot);
    else if (block->flags & PG_PARTIAL)
        error = install_rest(region, entry, pg_block_address(region, block->number), *slot);
    else
        error = install_whole(region, entry, slot, unshown);
    if (!error)
        pg_installed(region, entry);
    return error;
}

/* Install what is in job.slot. */
static void finish(struct pg_region *region, struct pg_job job)
{
    int sequential = region->blocks.at[job.entry].flags & PG_SEQUENCE;
    int error = pg_install(region, job.entry, &job.slot, NULL);

    if (!error) {
        pg_enlist(region, job.entry, sequential);
        pg_note_filled(region, job.number, job.began);
    } else {
        job.tries++;
        pg_put_off(region, job, -error, pg_backoff(job.tries), 0);
    }
}

void pg_do_job(struct pg_region *region, struct pg_job job)
{
    int error, fresh;

    if (job.writing) {
        pg_await_written(region, job);
        return;
    }
    if (job.recovering) {
        pg_recover(region, job);
        return;
    }
    pg_expect_filling(&region->blocks, job.entry, job.number);
    if (job.slot != PG_NO_SLOT) {
        finish(region, job);
        return;
    }
    job.slot = pg_slot_for_block(region);
    if (job.slot == PG_NO_SLOT) {
        /* All that is resident is dirty, and the store does not take it; or it is in use. */
        pg_put_off(region, job, region->write_error ? region->write_error : ENOMEM, 1000000, 1);
        return;
    }
    fresh = pg_is_fresh_slot(&region->frames, job.slot);
    pthread_mutex_unlock(&region->lock);
    error = pg_read_blocks(region, job.number, &job.slot, 1, 0);
    pthread_mutex_lock(&region->lock);
    if (!error) {
        finish(region, job);
        return;
    }
    pg_slot_back(region, job.slot, !fresh);
    job.slot = PG_NO_SLOT;
    job.tries++;
    region->counters.retries++;
    /* Memory that a slot gets by being read into may be refused, by a cgroup that is full. */
    pg_put_off(region, job, fresh && error == -EFAULT ? PG_NO_MEMORY : -error,
               pg_backoff(job.tries), 0);
}

void pg_fill(struct pg_region *region, pg_entry entry, uint64_t began)
{
    struct pg_job job = {.entry = entry,
                         .number = region->blocks.at[entry].number,
                         .slot = PG_NO_SLOT,
                         .began = began};
    int error, fresh;

    pg_record_needed(&region->record, job.number);
    if (!pg_ask_helper(region, job))
        return;
    if (!pg_has_helper(region) || pg_is_blank(region, job.number))
        job.slot = pg_slot_for_block(region);
    if (job.slot != PG_NO_SLOT) {
        fresh = pg_is_fresh_slot(&region->frames, job.slot);
        error = -PG_NOT_NOW;
        if (!pg_is_cold(region) || pg_is_blank(region, job.number)) {
            pthread_mutex_unlock(&region->lock);
            error = pg_read_blocks(region, job.number, &job.slot, 1, 1);
            pthread_mutex_lock(&region->lock);
        }
        if (!error) {
            finish(region, job);
            return;
        }
        if (error == -PG_NOT_NOW && !pg_take_off(region, job, fresh))
            return;
        pg_slot_back(region, job.slot, !fresh);
        job.slot = PG_NO_SLOT;
        if (error != -PG_NOT_NOW) {
            job.tries = 1;
            region->counters.retries++;
            job.not_before = pg_now() + pg_backoff(1);
        }
    }
    /* A worker waits for the device, so that other faults need not. */
    if (pg_put_job(region, job))
        pg_do_job(region, job);
}

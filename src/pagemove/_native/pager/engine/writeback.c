/* Changes go to the store, or in a private region to its spill file. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/faults.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/copies.h"
#include "pager/mechanisms/trace.h"
#include "pager/mechanisms/unnamed.h"

enum { PIECE = 16384 };

int pg_may_write(const struct pg_region *region)
{
    return !region->write_pause || pg_now() >= region->write_not_before;
}

int pg_is_spilled(const struct pg_region *region, uint32_t number)
{
    return region->mode == PG_PRIVATE && pg_is_noted(region, number);
}

int pg_open_spill(struct pg_region *region, char text[PG_TEXT])
{
    struct pg_config config = {.nbytes = region->nbytes, .label = "the file of private changes"};
    const char *directory = region->spill_directory;
    char why[PG_UNNAMED_TEXT];
    int error = 0;

    config.fd = pg_open_unnamed(directory);
    if (config.fd < 0) {
        error = config.fd;
    } else {
        error = pg_store_init(&region->spill, &config, -1, text);
        close(config.fd);
    }
    if (!error || !pg_explain_unnamed(directory, -error, "set TMPDIR to", why))
        return error;
    snprintf(
        text, PG_TEXT,
        "mode 'c' keeps private changes in an unnamed file when they leave memory, and %.1000s "
        "takes none: %s",
        directory, why);
    return error;
}

/* What the user has discarded of a block is to have the store's contents. In small pieces: this is
 * memory beyond the limit. */
static int spill_original(struct pg_region *region, struct pg_store *store, uint64_t offset,
                          uint64_t length)
{
    char buffer[PIECE] = {0};
    uint64_t got;
    int error = 0;

    for (uint64_t done = 0; done < length && !error; done += PIECE) {
        struct pg_piece piece = {buffer, length - done < PIECE ? length - done : PIECE};
        error = pg_store_read(&region->store, offset + done, &piece, 1, 0, &got);
        if (!error)
            error = pg_store_write(store, offset + done, &piece, 1);
    }
    return error;
}

/* The pages of a block that there are, run by run; a spill file gets those that are not as well. */
static int write_parts(struct pg_region *region, struct pg_store *store, const struct pg_out *out)
{
    uint64_t page = region->uffd.page_size, address = pg_slot_address(&region->frames, out->slot);
    unsigned pages = (unsigned)(region->block_size / page), first = 0, end;
    int original = region->spilled && !pg_is_noted(region, out->number), error = 0;

    for (; first < pages && !error; first = end) {
        int there = pg_has(&out->pages, first) != 0;
        uint64_t offset = out->number * region->block_size + first * page, length;
        for (end = first; end < pages && (pg_has(&out->pages, end) != 0) == there; end++)
            ;
        length = (end - first) * page;
        if (there) {
            struct pg_piece piece = {(void *)(uintptr_t)(address + first * page), length};
            error = pg_store_write(store, offset, &piece, 1);
        } else if (original) {
            error = spill_original(region, store, offset, length);
        }
    }
    return error;
}

static int by_number(const void *one, const void *other)
{
    uint32_t a = ((const struct pg_out *)one)->number, b = ((const struct pg_out *)other)->number;

    return a < b ? -1 : a > b;
}

/* The blocks from outs[0] on that are whole and follow each other. */
static size_t neighbours(const struct pg_out *outs, size_t count)
{
    size_t n = 1;

    while (n < count && outs[n].whole && outs[n].number == outs[0].number + n)
        n++;
    return n;
}

void pg_write_back(struct pg_region *region, struct pg_out *outs, size_t count)
{
    struct pg_store *store = region->mode == PG_PRIVATE ? &region->spill : &region->store;
    size_t n = count;

    qsort(outs, count, sizeof *outs, by_number);
    for (size_t i = 0; i < count; i += n) {
        struct pg_piece pieces[PG_BATCH];
        uint64_t began = pg_trace_begin();
        int failed;
        n = 1;
        if (!outs[i].whole) {
            failed = write_parts(region, store, &outs[i]);
        } else {
            /* Of compressed memory one may be full where the next makes room. */
            n = store->compressed ? 1 : neighbours(&outs[i], count - i);
            for (size_t k = 0; k < n; k++)
                pieces[k] = (struct pg_piece){
                    (void *)(uintptr_t)pg_slot_address(&region->frames, outs[i + k].slot),
                    region->block_size};
            if (store->compressed && outs[i].offered)
                failed = pg_store_offer(store, outs[i].number, pieces);
            else
                failed = pg_store_write(store, outs[i].number * region->block_size, pieces, n);
        }
        if (failed != -PG_STAYS)
            pg_trace_since(region->base, PG_TRACE_WRITE, outs[i].number * region->block_size,
                           n * region->block_size, began, failed);
        for (size_t k = 0; k < n; k++) {
            outs[i + k].error = failed;
            if (!failed && region->spilled)
                pg_note_stored(region, outs[i + k].number);
        }
    }
}

unsigned pg_begin_write(struct pg_region *region)
{
    unsigned epoch = region->epoch & 1;

    region->writing[epoch]++;
    return epoch;
}

void pg_end_write(struct pg_region *region, unsigned epoch, const struct pg_out *outs, size_t count)
{
    /* In memory that is full for one block there may be room for the next. */
    uint64_t most = region->store.compressed ? 8000000 : 250000000, now;
    size_t again = 0;
    int error = 0;

    region->writing[epoch]--;
    for (size_t i = 0; i < count; i++) {
        uint64_t offset = outs[i].number * region->block_size;
        again += outs[i].stays && outs[i].again;
        if (outs[i].error) {
            error = -outs[i].error;
            continue;
        }
        if (outs[i].stays)
            continue;
        region->unsynced = 1;
        region->counters.written_back++;
        region->counters.bytes_written += offset + region->block_size > region->nbytes
                                              ? region->nbytes - offset
                                              : region->block_size;
    }
    /* That some stay where they are says nothing of whether others have room. */
    if (count && again == count)
        return;
    region->write_error = error;
    if (!error) {
        region->write_pause = region->write_failing_since = 0;
        return;
    }
    /* Changed blocks stay for a while before the store is bothered again. */
    now = pg_now();
    region->write_failures++;
    region->counters.retries++;
    if (!region->write_failing_since)
        region->write_failing_since = now;
    region->write_pause = region->write_pause ? 2 * region->write_pause : 2000000;
    if (region->write_pause > most)
        region->write_pause = most;
    region->write_not_before = now + region->write_pause;
}

void pg_put_back(struct pg_region *region, const struct pg_out *out)
{
    struct pg_blocks *blocks = &region->blocks;
    struct pg_block *block = &blocks->at[out->entry];
    uint64_t address = pg_block_address(region, out->number);
    struct pg_job job = {
        .entry = out->entry, .number = out->number, .slot = out->slot, .began = pg_now()};
    uint64_t slot = pg_slot_address(&region->frames, out->slot);
    int error = pg_is_lost(region)
                    ? pg_bring_in_lost(region, address, slot)
                    : pg_bring_in(&region->uffd, address, slot, region->block_size, 0);

    if (pg_writable(region))
        pg_set_dirty(blocks, out->entry, 1);
    block->slot = PG_NO_SLOT;
    block->flags &= (uint8_t)~(PG_WANTED | PG_WRITE_WANTED);
    if (!error) {
        pg_give_empty(&region->frames, out->slot);
        if (block->state != PG_RESIDENT)
            pg_become(blocks, out->entry, PG_RESIDENT);
        pg_enlist(region, out->entry, 0);
    } else if (pg_writable(region)) {
        /* Its newest contents are here, and nowhere else. */
        pg_become(blocks, out->entry, PG_FILLING);
        pg_put_off(region, job, -error, pg_backoff(1), 0);
    } else {
        pg_discard(&region->uffd, address, region->block_size);
        pg_give_up(&region->frames, out->slot);
        pg_become(blocks, out->entry, PG_ABSENT);
    }
    pg_wake(&region->uffd, address, region->block_size);
}

/* A block that was touched while it was written goes where it came from, as if from standby. A
 * worker does that, for it may need room, and this is on the way to make some. */
static void bring_back(struct pg_region *region, const struct pg_out *out)
{
    struct pg_job job = {
        .entry = out->entry, .number = out->number, .slot = out->slot, .began = pg_now()};

    pg_become(&region->blocks, out->entry, PG_FILLING);
    pg_put_job(region, job); /* one with a slot finds room always */
}

int pg_copy_written(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint64_t address = pg_block_address(region, block->number);

    /* A part of it is missing: what was discarded has to be read, after the rest is written. And of
     * one that the store keeps in place there is no second. */
    if (block->flags & PG_PARTIAL || block->in_place || pg_make_room(region, 0))
        return -PG_NOT_NOW;
    /* Protected, also for somebody who wants to store: so what is there of a copy that ends
     * half-way can be taken away again. */
    if (pg_copy_in(&region->uffd, address, pg_slot_address(&region->frames, block->slot),
                   region->block_size, 1)) {
        pg_discard(&region->uffd, address, region->block_size);
        return -PG_NOT_NOW;
    }
    pg_count_frame(&region->frames, 1);
    pg_note_rescued(region, entry);
    block->flags &= (uint8_t)~(PG_WANTED | PG_WRITE_WANTED);
    block->flags |= PG_COPY_IN_FLIGHT; /* until the write that is under way has ended */
    block->slot = PG_NO_SLOT;
    pg_set_dirty(&region->blocks, entry, 0);
    pg_become(&region->blocks, entry, PG_RESIDENT);
    pg_enlist(region, entry, 0);
    return 0;
}

/* A block has been written back that may leave before that is durable. */
static void note_written(struct pg_region *region, pg_entry entry)
{
    /* What is written while the store makes durable what was written before is not covered, and a
     * mark would say that it is. */
    if (region->syncing)
        region->unsynced_evicted = 1;
    else
        region->blocks.at[entry].flags |= PG_UNSYNCED;
}

/* It was mapped again while its copy was written. */
static void settle_copied(struct pg_region *region, const struct pg_out *out)
{
    region->blocks.at[out->entry].flags &= (uint8_t)~PG_COPY_IN_FLIGHT;
    if (out->error || out->stays)
        pg_set_dirty(&region->blocks, out->entry, 1);
    else
        note_written(region, out->entry);
    pg_slot_back(region, out->slot, 1);
}

/* A block that was written back, or could not be. */
static void settle_written(struct pg_region *region, struct pg_out *out)
{
    struct pg_blocks *blocks = &region->blocks;
    struct pg_block *block = &blocks->at[out->entry];
    int wanted = block->flags & PG_WANTED;

    if (block->flags & PG_COPY_IN_FLIGHT) {
        settle_copied(region, out);
        return;
    }
    if (block->flags & PG_STARVED) {
        /* Poisoned so that no thread waits for this write forever. */
        block->flags &= (uint8_t)~PG_STARVED;
        pg_discard(&region->uffd, pg_block_address(region, out->number), region->block_size);
    }
    block->flags &= (uint8_t)~PG_PARTIAL;
    if (out->error || out->stays) {
        pg_become(blocks, out->entry, PG_STAGED);
        pg_put_back(region, out);
        pg_frame_available(region);
        return;
    }
    note_written(region, out->entry);
    pg_set_dirty(blocks, out->entry, 0);
    pg_become(blocks, out->entry, PG_STAGED);
    if (block->in_place)
        pg_leave_place(region, out);
    else if (wanted && out->whole)
        bring_back(region, out);
    else
        pg_settle(region, out);
    if (wanted)
        pg_wake(&region->uffd, pg_block_address(region, out->number), region->block_size);
}

/* The store has taken these, but a sync has failed meanwhile, and may have dropped them. */
static void distrust(struct pg_region *region, struct pg_out *outs, size_t count)
{
    region->write_failures++;
    for (size_t i = 0; i < count; i++)
        if (!outs[i].error)
            outs[i].error = -EIO;
}

void pg_write_evicted(struct pg_region *region, struct pg_out *outs, size_t count)
{
    unsigned epoch = pg_begin_write(region);
    uint64_t sync_failures = region->sync_failures;

    pthread_mutex_unlock(&region->lock);
    pg_write_back(region, outs, count);
    pthread_mutex_lock(&region->lock);
    pg_settle_offers(region, outs, count);
    pg_end_write(region, epoch, outs, count);
    if (region->sync_failures != sync_failures)
        distrust(region, outs, count);
    for (size_t i = 0; i < count; i++)
        settle_written(region, &outs[i]);
    pthread_cond_broadcast(&region->changed);
}

/* Blocks that stay, for as long as the user has them pinned: in no list of those that can leave.
 *
 * That is for the sake of system calls. Where the kernel does not report its own faults, neither of
 * a missing page nor of a write-protected one, a call meets EFAULT instead. So what is pinned is
 * never taken out for a moment either, and what is pinned to be written is unprotected, and counts
 * as dirty, for stores to it go unseen. It can never become clean before it is unpinned: a flush
 * copies it where it is. */
#include "pager/engine/pin.h"

#include <errno.h>
#include <sys/mman.h>

#include "pager/engine/arriving.h"
#include "pager/engine/asked.h"
#include "pager/engine/choice.h"
#include "pager/engine/lease.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/copies.h"
#include "pager/mechanisms/interruption.h"

static uint64_t table_bytes(const struct pg_region *region)
{
    return region->nblocks * sizeof *region->pins;
}

static int make_table(struct pg_region *region)
{
    void *pins;

    if (region->pins)
        return 0;
    pins = mmap(NULL, table_bytes(region), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pins == MAP_FAILED)
        return -ENOMEM;
    region->pins = pins;
    return 0;
}

void pg_pins_free(struct pg_region *region)
{
    if (region->pins)
        munmap(region->pins, table_bytes(region));
}

/* Frames that pins have to leave. One instruction can need four blocks at once; and where blocks
 * may be changed a flush needs one for a copy. Huge pages are not copied page by page, so that each
 * of the four may need a second frame on its way in. */
static uint32_t kept_free(const struct pg_region *region, uint32_t pinned)
{
    int writable = pg_writable(region);
    uint32_t others = region->nblocks - pinned;
    uint32_t least = region->huge && writable ? 2 * PG_LEAST_FRAMES : PG_LEAST_FRAMES;

    /* A plain limit has four blocks at least, also for a region of one; a part of a block that the
     * program has discarded is read into another frame. */
    return others >= least ? least : others + (uint32_t)(writable || region->budget);
}

static int fits(const struct pg_region *region, uint32_t pinned)
{
    return !region->frames.limited ||
           (uint64_t)pinned + kept_free(region, pinned) <= region->frames.limit;
}

uint64_t pg_frames_least(const struct pg_region *region)
{
    return (uint64_t)region->frames.pinned + kept_free(region, region->frames.pinned);
}

uint64_t pg_pinnable(struct pg_region *region)
{
    uint64_t frames = pg_lease_claimable(region);
    uint32_t most = region->nblocks;

    if (region->frames.limited && (uint64_t)most + kept_free(region, most) > frames) {
        most = frames < most ? (uint32_t)frames : most;
        while (most && (uint64_t)most + kept_free(region, most) > frames)
            most--;
    }
    return most * region->block_size;
}

static void note_unpinned(struct pg_region *region, uint32_t number)
{
    pg_entry entry;

    /* One too many is not to make others' pins void. */
    if (!pg_is_pinned(region, number) || --region->pins[number])
        return;
    region->frames.pinned--;
    entry = pg_find(&region->blocks, number);
    if (entry != PG_NONE && region->blocks.at[entry].state == PG_RESIDENT &&
        region->blocks.at[entry].list == PG_UNLISTED)
        pg_enlist(region, entry, 0);
}

static void note_pinned(struct pg_region *region, uint32_t number)
{
    pg_entry entry;

    if (region->pins[number]++)
        return;
    region->frames.pinned++;
    entry = pg_find(&region->blocks, number);
    /* One that stands by keeps its place: it has to come back yet. */
    if (entry != PG_NONE && region->blocks.at[entry].state == PG_RESIDENT)
        pg_unlist(&region->blocks, entry);
}

static void each(struct pg_region *region, const struct pg_run *runs, size_t count,
                 void (*note)(struct pg_region *region, uint32_t number))
{
    for (size_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < runs[i].count; k++)
            note(region, runs[i].first + k);
    pg_share_out(region);
    pg_lease_note_floor(region);
}

/* How many blocks will be pinned with these. */
static uint32_t count_pinned(const struct pg_region *region, const struct pg_run *runs,
                             size_t count)
{
    uint32_t pinned = region->frames.pinned;

    for (size_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < runs[i].count; k++)
            pinned += !region->pins[runs[i].first + k];
    return pinned;
}

/* All of it or nothing, before anything is read. Drops the lock. */
static int reserve(struct pg_region *region, const struct pg_run *runs, size_t count)
{
    uint32_t pinned;
    int error = make_table(region);

    while (!error && !fits(region, pinned = count_pinned(region, runs, count)))
        error = pg_lease_claim(region, (uint64_t)pinned + kept_free(region, pinned));
    if (error)
        return error;
    each(region, runs, count, note_pinned);
    return 0;
}

/* Fill in a block that nobody waits for in the kernel. Drops the lock. */
static void fill(struct pg_region *region, pg_entry entry, uint16_t slot)
{
    struct pg_job job = {
        .entry = entry, .number = region->blocks.at[entry].number, .slot = slot, .began = pg_now()};

    pg_do_job(region, job);
}

/* A page that the user has discarded. Drops the lock. */
static void fill_gaps(struct pg_region *region, pg_entry entry)
{
    pg_unlist(&region->blocks, entry);
    region->blocks.at[entry].flags |= PG_PARTIAL;
    pg_become(&region->blocks, entry, PG_FILLING);
    fill(region, entry, PG_NO_SLOT);
}

void pg_refill(struct pg_region *region, uint64_t address)
{
    uint32_t number = (uint32_t)((address - region->base) / region->block_size);
    pg_entry entry = pg_find(&region->blocks, number);

    if (!pg_is_pinned(region, number) || entry == PG_NONE ||
        region->blocks.at[entry].state != PG_RESIDENT)
        return;
    pg_unlist(&region->blocks, entry);
    region->blocks.at[entry].flags |= PG_PARTIAL;
    pg_become(&region->blocks, entry, PG_FILLING);
    pg_fill(region, entry, pg_now());
}

/* A block that stands by, or is on its way. 0, or -errno: it is not to be waited for.
 * Drops the lock. */
static int bring(struct pg_region *region, pg_entry entry, int write, uint64_t until)
{
    struct pg_block *block = &region->blocks.at[entry];

    if (block->state == PG_ERROR)
        return -EIO;
    if (block->state == PG_STAGED) {
        pg_note_rescued(region, entry);
        pg_unlist(&region->blocks, entry);
        pg_become(&region->blocks, entry, PG_FILLING);
        block->flags |= write ? PG_WRITE_WANTED : 0;
        fill(region, entry, block->slot);
        return 0;
    }
    if (block->state == PG_FILLING)
        /* Of what is read ahead nothing is to be left in its slot. */
        block->flags |= write ? PG_WANTED | PG_WRITE_WANTED : PG_WANTED;
    return pg_wait_changed(region, until) ? -ENOMEM : 0;
}

/* What a system call needs that is to write there: no page is protected, and nobody needs to see
 * the store. */
static int unprotect(struct pg_region *region, pg_entry entry)
{
    uint32_t number = region->blocks.at[entry].number;

    pg_set_dirty(&region->blocks, entry, 1);
    return pg_protect(&region->uffd, pg_block_address(region, number), region->block_size, 0);
}

/* Whether a page of the block has been given up since so many failures were noted. */
static int has_failed(const struct pg_region *region, uint32_t number, uint64_t since)
{
    for (uint64_t i = since; i < region->failure_count; i++) {
        const struct pg_failure *failure = &region->failures[i % PG_FAILURES];
        if (failure->operation == PG_OP_READ && failure->offset == number * region->block_size)
            return 1;
    }
    return 0;
}

/* Have a block whole, and as it is needed. 0 or -errno. Drops the lock. */
static int have(struct pg_region *region, uint32_t number, int write)
{
    uint64_t until = pg_overdue(region, pg_overdue(region, pg_now()));
    uint64_t failures = region->failure_count;
    struct pg_pages pages;
    int error = 0;

    while (!error) {
        pg_entry entry = pg_find(&region->blocks, number);
        if (pg_is_called_off())
            return -PG_INTERRUPTED;
        if (entry == PG_NONE) {
            entry = pg_begin(&region->blocks, number);
            if (entry == PG_NONE)
                return -ENOMEM;
            pg_record_needed(&region->record, number);
            region->blocks.at[entry].flags = write ? PG_WRITE_WANTED : 0;
            fill(region, entry, PG_NO_SLOT);
        } else if (region->blocks.at[entry].state != PG_RESIDENT) {
            error = bring(region, entry, write, until);
        } else if (has_failed(region, number, failures)) {
            error = -EIO;
        } else {
            error = pg_pages_in(&region->uffd, pg_block_address(region, number), region->block_size,
                                &pages);
            if (!error && pg_is_whole(region, &pages))
                return write ? unprotect(region, entry) : 0;
            if (!error)
                fill_gaps(region, entry);
        }
    }
    return error;
}

int pg_do_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write)
{
    int error;

    pthread_mutex_lock(&region->lock);
    error = reserve(region, runs, count);
    pthread_mutex_unlock(&region->lock);
    if (error)
        return error;
    for (size_t i = 0; i < count && !error; i++) {
        error = pg_read_range(region, runs[i].first, runs[i].first + runs[i].count);
        pthread_mutex_lock(&region->lock);
        for (uint32_t k = 0; k < runs[i].count && !error; k++)
            error = have(region, runs[i].first + k, write && pg_writable(region));
        pthread_mutex_unlock(&region->lock);
    }
    if (error)
        pg_unpin(region, runs, count);
    return error;
}

void pg_unpin(struct pg_region *region, const struct pg_run *runs, size_t count)
{
    pthread_mutex_lock(&region->lock);
    each(region, runs, count, note_unpinned);
    pg_frame_available(region);
    pthread_mutex_unlock(&region->lock);
}

int pg_copy_pinned(struct pg_region *region, struct pg_out *out)
{
    uint64_t slot, address = pg_block_address(region, out->number);
    int error;

    out->slot = pg_slot_to_move_into(region);
    if (out->slot == PG_NO_SLOT)
        return -PG_NOT_NOW;
    pg_count_frame(&region->frames, 1);
    slot = pg_slot_address(&region->frames, out->slot);
    /* The user may discard a page just now, and the thread that serves the fault needs the lock. */
    pthread_mutex_unlock(&region->lock);
    error = pg_copy_out(&region->uffd, slot, address, region->block_size, &out->pages);
    pthread_mutex_lock(&region->lock);
    out->whole = pg_is_whole(region, &out->pages);
    if (error)
        pg_give_up(&region->frames, out->slot);
    return error;
}

int pg_copy_in_place(struct pg_region *region, pg_entry entry, struct pg_out *out)
{
    uint64_t address = pg_block_address(region, out->number);
    /* What has left comes back. */
    int error = pg_bring_in(&region->uffd, address, pg_slot_address(&region->frames, out->slot),
                            region->block_size, 0);

    if (!error)
        error = pg_protect(&region->uffd, address, region->block_size, 1);
    if (error) {
        pg_unlist(&region->blocks, entry);
        pg_put_back(region, out);
        return error;
    }
    pg_give_empty(&region->frames, out->slot);
    pg_set_dirty(&region->blocks, entry, 0);
    error = pg_copy_pinned(region, out);
    if (error)
        pg_set_dirty(&region->blocks, entry, 1);
    return error;
}

/* Somebody has closed the descriptors of the program's that he did not know, and the end of the
 * pipe by which the pager notices that. Or the program closes the region while there are arrays.
 *
 * Its own are out of reach (table.c), so nothing is lost by it. But the program means to have
 * nothing open that it has not opened since: from here on the region is not there for it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/engine/arriving.h"
#include "pager/engine/faults.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/threads.h"
#include "pager/mechanisms/voice.h"

#define BEFORE_EXEC UINT64_C(100000000) /* of time between the two, at most */

static int protect(uint64_t start, uint64_t length, int protection)
{
    return mprotect((void *)(uintptr_t)start, length, protection) ? -errno : 0;
}

int pg_bring_in_lost(struct pg_region *region, uint64_t address, uint64_t slot)
{
    int error = protect(address, region->block_size, PROT_READ | PROT_WRITE);

    if (!error)
        error = pg_bring_in(&region->uffd, address, slot, region->block_size, 0);
    protect(address, region->block_size, PROT_NONE);
    return error;
}

/* Move a dirty block out, which only this makes possible for an instant. */
static int take_out_lost(struct pg_region *region, pg_entry entry, struct pg_out *out)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint64_t address = pg_block_address(region, block->number);
    unsigned pages = (unsigned)(region->block_size / region->uffd.page_size);
    int error;

    *out = (struct pg_out){
        .entry = entry, .number = block->number, .slot = pg_slot_to_move_into(region), .whole = 1};
    if (out->slot == PG_NO_SLOT)
        return -PG_NOT_NOW;
    error = protect(address, region->block_size, PROT_READ | PROT_WRITE);
    if (error) {
        pg_give_empty(&region->frames, out->slot);
        return error;
    }
    pg_unlist(&region->blocks, entry);
    error = pg_move_out(&region->uffd, pg_slot_address(&region->frames, out->slot), address,
                        region->block_size, &out->pages);
    protect(address, region->block_size, PROT_NONE);
    if (error) {
        pg_put_back(region, out);
        return error;
    }
    block->slot = out->slot;
    pg_become(&region->blocks, entry, PG_STAGED);
    pg_become(&region->blocks, entry, PG_WRITING);
    for (unsigned page = 0; page < pages; page++)
        out->whole &= pg_has(&out->pages, page);
    return 0;
}

/* Write one dirty block, which is gone then; or it stays as it was. Drops the lock. */
static int save_one(struct pg_region *region, pg_entry entry)
{
    struct pg_out out;
    unsigned epoch;
    int error = take_out_lost(region, entry, &out);

    if (error)
        return error;
    epoch = pg_begin_write(region);
    pthread_mutex_unlock(&region->lock);
    pg_write_back(region, &out, 1);
    pthread_mutex_lock(&region->lock);
    pg_end_write(region, epoch, &out, 1);
    pg_become(&region->blocks, entry, PG_STAGED);
    if (out.error) {
        pg_put_back(region, &out);
        return out.error;
    }
    pg_set_dirty(&region->blocks, entry, 0);
    region->unsynced_evicted = 1; /* it is not there to be written again if the sync fails */
    pg_become(&region->blocks, entry, PG_ABSENT);
    pg_slot_back(region, out.slot, out.whole);
    return 0;
}

static int is_busy(const struct pg_block *block)
{
    return block->state == PG_WRITING || pg_is_held(block);
}

/* Drops the lock. */
static int save_dirty(struct pg_region *region, uint32_t *failed)
{
    uint64_t patience = pg_overdue(region, pg_now());
    int error = 0;

    for (pg_entry entry = 0; entry < region->blocks.used; entry++) {
        struct pg_block *block = &region->blocks.at[entry];
        int one = 0;
        while (is_busy(block) && !one)
            one = pg_wait_changed(region, patience);
        if (one)
            one = -EBUSY; /* it cannot be mapped, or written */
        else if (block->state == PG_RESIDENT && pg_is_to_be_written(block))
            one = save_one(region, entry);
        if (!one)
            continue;
        *failed = block->number;
        error = one;
    }
    return error;
}

int pg_save_lost(struct pg_region *region)
{
    uint64_t deadline = pg_now() + region->timeout, tries = 0;
    enum pg_operation operation;
    uint32_t number;
    int error;

    if (region->mode != PG_WRITE)
        return -PG_LOST;
    pthread_mutex_lock(&region->lock);
    error = pg_begin_flush(region);
    if (error) {
        pthread_mutex_unlock(&region->lock);
        return error;
    }
    for (;;) {
        operation = PG_OP_WRITE;
        number = 0;
        error = save_dirty(region, &number);
        if (!error) {
            operation = PG_OP_SYNC;
            error = pg_sync_all(region);
        }
        tries++;
        if (!error || region->sync_lost || pg_now() >= deadline)
            break;
        pg_pause(region, pg_backoff(tries));
    }
    if (error)
        pg_note_failure(region, operation, number, -error, tries);
    if (region->sync_lost)
        pg_note_failure(region, PG_OP_SYNC, 0, -(error = -PG_NOT_DURABLE), 1);
    pg_end_flush(region);
    pthread_mutex_unlock(&region->lock);
    return error ? error : -PG_LOST;
}

static void *save(void *region)
{
    pg_save_lost(region);
    pg_end_work(region);
    return NULL;
}

/* From now on the region is not there for the program. */
static void note_lost(struct pg_region *region)
{
    __atomic_store_n(&region->lost, 1, __ATOMIC_RELEASE);
    /* Threads that wait for a page find out. */
    pg_wake(&region->uffd, region->base, region->length);
}

int pg_shut(struct pg_region *region)
{
    int error = 0;

    pthread_mutex_lock(&region->lock);
    if (!pg_is_lost(region))
        error = protect(region->base, region->length, PROT_NONE);
    if (!error)
        note_lost(region);
    pthread_mutex_unlock(&region->lock);
    return error;
}

/* What is of an arena nobody opens. */
static const char *remedy(const struct pg_region *region, int error)
{
    if (!region->blank)
        return error ? "open it again" : "open it after that";
    if (error)
        return "make the arrays again, in a new process";
    return region->carried_in
               ? "close only descriptors that the program has opened, or fork before "
                 "the arrays are made, or start workers by spawn or forkserver"
               : "close only descriptors that the program has opened, or close them "
                 "before the arrays are made";
}

/* What is compressed in memory of this process nobody can read any more. */
static int is_saved(const struct pg_region *region)
{
    return region->mode == PG_WRITE && !region->store.compressed;
}

static void describe_lost(const struct pg_region *region, int error, char line[PG_TEXT])
{
    const char *saving = is_saved(region) ? ", changes are being saved" : "";

    if (error)
        snprintf(line, PG_TEXT,
                 "pagemove: cannot receive the faults of paged memory over %.600s: %s: it raises "
                 "SIGSEGV on access from now on%s; %s\n",
                 region->store.label, strerror(error), saving, remedy(region, error));
    else
        snprintf(line, PG_TEXT,
                 "pagemove: the program has closed the descriptors of paged memory over %.600s, as "
                 "code that closes all of them does: it raises SIGSEGV on access from now on%s; "
                 "%s\n",
                 region->store.label, saving, remedy(region, error));
}

/* A child made by fork that closes all descriptors is mostly about to be another program. Who
 * touches the memory is told; the others only if there are any after a while. */
static void say_later(struct pg_region *region, const char *line)
{
    uint64_t until = pg_now() + BEFORE_EXEC;

    pthread_mutex_lock(&region->lock);
    while (!__atomic_load_n(&region->stop, __ATOMIC_ACQUIRE) && pg_now() < until)
        pg_sleep_until(&region->changed, &region->lock, until);
    pthread_mutex_unlock(&region->lock);
    if (!__atomic_load_n(&region->stop, __ATOMIC_ACQUIRE))
        pg_say("%s", line);
}

void pg_lose(struct pg_region *region, int error)
{
    int carried = !error && region->carried_in;
    char line[PG_TEXT];

    if (pg_is_lost(region))
        return; /* for the other reason there is: it is said, and being saved */
    describe_lost(region, error, line);
    /* First: a touch after PROT_NONE may end the process. A page that is touched before is served
     * as ever, and who waits for one is woken below. A carried region is never plain, so it is lost
     * for certain. Without its lock, which a fork waits for that has the lock of all regions. */
    if (carried)
        region->above->mark_lost(region, line);
    pthread_mutex_lock(&region->lock);
    if ((region->plain || region->let_go) && !error) {
        /* Nothing of it went through what was closed, nor will. */
        pthread_mutex_unlock(&region->lock);
        return;
    }
    if (!carried)
        pg_say("%s", line);
    protect(region->base, region->length, PROT_NONE);
    note_lost(region);
    if (is_saved(region) && (!region->engine || region->above->post_flush(region) == -ENOMEM)) {
        pg_begin_work(region);
        region->has_saver = !pg_start_thread(&region->saver, "pagemove-save", save, region);
        if (!region->has_saver)
            pg_end_work(region);
    }
    pthread_mutex_unlock(&region->lock);
    if (carried)
        say_later(region, line);
}

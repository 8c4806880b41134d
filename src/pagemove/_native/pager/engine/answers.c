/* Small blocks that the helper puts into the region itself: asking it, and taking its answer. */
#include <errno.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/mail.h"

int pg_ask_helper(struct pg_region *region, struct pg_job job)
{
    const struct pg_block *block = &region->blocks.at[job.entry];
    int error;

    if (!pg_has_helper(region) || region->lane || region->block_size >= PG_MOVE_FRESH_FROM ||
        block->flags & PG_PARTIAL || pg_is_spilled(region, job.number) ||
        pg_is_blank(region, job.number) || pg_make_room(region, 0))
        return -PG_NOT_NOW;
    /* Protected, also for somebody who wants to store: a block that comes after it was given up is
     * taken away again, and nobody may have stored into it. */
    error = pg_store_ask(&region->store, job.number * region->block_size, region->block_size,
                         pg_block_address(region, job.number), 1, &region->lane);
    if (error) {
        region->lane = NULL;
        return error;
    }
    pg_count_frame(&region->frames, 1);
    region->asked = job;
    region->listening = 0;
    return 0;
}

/* Now that the helper is done with it, a block that was given up can be had again. */
static void take_late(struct pg_region *region, uint32_t number)
{
    uint64_t address = pg_block_address(region, number);
    pg_entry entry = pg_find(&region->blocks, number);

    region->asked_late = 0;
    pg_count_frame(&region->frames, -1);
    if (entry == PG_NONE || region->blocks.at[entry].state != PG_ERROR)
        return;
    pg_become(&region->blocks, entry, PG_ABSENT);
    pthread_cond_broadcast(&region->changed);
    pg_discard(&region->uffd, address, region->block_size);
    pg_wake(&region->uffd, address, region->block_size);
}

void pg_take_answer(struct pg_region *region)
{
    struct pg_job job = region->asked;
    struct pg_pages pages;
    int is_there = pg_store_is_there(&region->store, region->lane), error;

    if (pg_store_answer(&region->store, region->lane, job.number * region->block_size,
                        region->block_size, &error)) {
        if (!region->listening) {
            pg_listen(region);
            return;
        }
        region->asked_late = 1;
        pg_put_off(region, job, PG_NO_ANSWER, 0, 0);
        return;
    }
    region->lane = NULL;
    if (region->asked_late) {
        take_late(region, job.number);
        return;
    }
    if (!error) {
        /* The helper may have ended before it has woken anybody. */
        if (is_there != PG_WOKEN)
            pg_wake(&region->uffd, pg_block_address(region, job.number), region->block_size);
        __atomic_add_fetch(&region->bytes_read, region->block_size, __ATOMIC_RELAXED);
        pg_member_missed(&region->member, region->block_size);
        pg_installed(region, job.entry);
        pg_enlist(region, job.entry, region->blocks.at[job.entry].flags & PG_SEQUENCE);
        pg_note_filled(region, job.number, job.began);
        return;
    }
    /* Pages may be there all the same, if it has ended only then, or copied in part. They stay, for
     * somebody may have stored into them, and what is missing is filled in. */
    if (pg_pages_in(&region->uffd, pg_block_address(region, job.number), region->block_size,
                    &pages) ||
        pages.word[0])
        region->blocks.at[job.entry].flags |= PG_PARTIAL;
    else
        pg_count_frame(&region->frames, -1);
    job.tries = 1;
    region->counters.retries++;
    pg_put_off(region, job, -error, pg_backoff(1), 0);
}

void pg_look_for_answer(struct pg_region *region, int wakes)
{
    int is_there;

    if (!region->lane || region->asked_late || region->inherited)
        return;
    is_there = pg_store_is_there(&region->store, region->lane);
    if (is_there == PG_WOKEN || (is_there && wakes))
        pg_take_answer(region);
}

void pg_listen(struct pg_region *region)
{
    region->listening = 1;
    if (pg_store_listen(&region->store, region->lane))
        pg_take_answer(region);
}

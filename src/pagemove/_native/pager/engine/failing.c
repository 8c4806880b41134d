/* Blocks that cannot be had: tried again, then given up. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/faults.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/limits.h"
#include "pager/mechanisms/trace.h"
#include "pager/mechanisms/voice.h"

/* ns between looks for a frame. */
#define RECOVERY_PAUSE UINT64_C(20000000)

#define NEVER (UINT64_MAX / 2)

/* ns between messages that a region waits for memory. */
#define WAIT_PAUSE UINT64_C(10000000000)

const char *pg_cause_of(int code)
{
    if (code == PG_NO_ANSWER)
        return "the store has not answered in time";
    if (code == PG_NOT_DURABLE)
        return "it was written, but the store has failed to make it durable";
    return code == PG_SHORT ? "the file is shorter than when it was opened"
                            : strerror(pg_errno_of(code));
}

/* Not for want of the store, but of a frame. */
static void describe_starved(struct pg_region *region, uint32_t number)
{
    char also[PG_TEXT] = "", text[PG_TEXT], limit[PG_LIMIT_TEXT];
    char blocks[128] = "all blocks of the staging area are in use by I/O";

    pg_store_text(&region->store, PG_OP_WRITE, PG_ANYWHERE, region->write_error, text);
    text[strcspn(text, "\n")] = 0;
    pg_name_limit(pg_errno_of(region->write_error), limit);
    if (region->frames.limited)
        snprintf(blocks, sizeof blocks,
                 "all %u blocks that may be resident are in use by I/O, changed, pinned or locked "
                 "(mlock)",
                 region->frames.limit);
    if (region->write_error && region->mode == PG_PRIVATE)
        snprintf(also, sizeof also,
                 ", and changed ones cannot be written to the unnamed file in %s (TMPDIR): %s",
                 region->spill_directory, pg_cause_of(region->write_error));
    else if (region->write_error)
        snprintf(also, sizeof also, ", and changed ones cannot be written: %s%s%.3000s%s",
                 pg_cause_of(region->write_error), *text ? ": " : "", text, limit);
    pg_say("pagemove: no room for %llu bytes at offset %llu of %s: %s%s; they raise SIGBUS on "
           "access\n",
           (unsigned long long)region->block_size,
           (unsigned long long)(number * region->block_size), region->store.label, blocks, also);
}

static void describe(struct pg_region *region, uint32_t number, int error, uint64_t tries)
{
    char text[PG_TEXT], tried[40] = "", limit[PG_LIMIT_TEXT] = "";

    /* None of them may have ended. */
    if (tries)
        snprintf(tried, sizeof tried, " (tried %llu time%s)", (unsigned long long)tries,
                 tries == 1 ? "" : "s");
    /* Of what the helper says, the first line has the cause. */
    pg_store_text(&region->store, PG_OP_READ, number * region->block_size, error, text);
    text[strcspn(text, "\n")] = 0;
    if (!*text)
        pg_name_limit(pg_errno_of(error), limit);
    pg_say(
        "pagemove: cannot read %llu bytes at offset %llu of %s: %s%s%s%s%s; they raise SIGBUS on "
        "access\n",
        (unsigned long long)region->block_size, (unsigned long long)(number * region->block_size),
        region->store.label, pg_cause_of(error), limit, *text ? ": " : "", text, tried);
}

/* For want of memory, as long as that takes: the user should know what a thread waits for. */
static void describe_wait(struct pg_region *region, uint32_t number, int error, uint64_t now)
{
    char limit[PG_LIMIT_TEXT];

    if (pg_errno_of(error) != ENOMEM || now < region->wait_said)
        return;
    region->wait_said = now + WAIT_PAUSE;
    pg_name_limit(ENOMEM, limit);
    pg_say("pagemove: no memory for %llu bytes at offset %llu of %s: %s%s; a thread that touches "
           "them waits until there is some\n",
           (unsigned long long)region->block_size,
           (unsigned long long)(number * region->block_size), region->store.label, strerror(ENOMEM),
           limit);
}

/* A thread waits for a block that is being written, and that takes too long: perhaps the store
 * waits for that thread. The changes are safe in their slot, and back when they are written. */
static void fail_writing(struct pg_region *region, struct pg_job job)
{
    struct pg_block *block = &region->blocks.at[job.entry];

    describe_starved(region, job.number);
    pg_note_failure(region, PG_OP_READ, job.number, ETIMEDOUT, job.tries);
    region->counters.errors++;
    block->flags &= (uint8_t)~(PG_WANTED | PG_WRITE_WANTED);
    block->flags |= PG_STARVED;
    pg_poison(&region->uffd, pg_block_address(region, job.number), region->block_size);
}

/* Whether the block is what the job is about, still. */
static int is_awaited(const struct pg_region *region, const struct pg_job *job)
{
    const struct pg_block *block = &region->blocks.at[job->entry];

    return block->number == job->number && block->state == PG_WRITING && block->flags & PG_WANTED;
}

void pg_await_written(struct pg_region *region, struct pg_job job)
{
    if (is_awaited(region, &job) && pg_copy_written(region, job.entry))
        pg_put_off(region, job, ETIMEDOUT, 1000000, 1);
}

/* Give a block up: it raises SIGBUS in threads that wait for it, or touch it later. */
static void fail(struct pg_region *region, struct pg_job job, int error, int starved)
{
    struct pg_block *block = &region->blocks.at[job.entry];
    int partial = block->flags & PG_PARTIAL;

    if (job.writing) {
        if (is_awaited(region, &job))
            fail_writing(region, job);
        return;
    }
    if (starved)
        describe_starved(region, job.number);
    else
        describe(region, job.number, error, job.tries);
    pg_note_failure(region, PG_OP_READ, job.number, error, job.tries);
    region->counters.errors++;
    block->flags &= (uint8_t)~(PG_WANTED | PG_WRITE_WANTED | PG_PARTIAL | PG_SEQUENCE);
    if (!partial) {
        /* Nothing of it is in memory. */
        pg_set_dirty(&region->blocks, job.entry, 0);
        pg_note_dropped(region, job.entry);
    }
    pg_become(&region->blocks, job.entry, partial ? PG_RESIDENT : PG_ERROR);
    if (partial)
        pg_enlist(region, job.entry, 0);
    pg_poison(&region->uffd, pg_block_address(region, job.number), region->block_size);
    pthread_cond_broadcast(&region->changed);
    if (starved && !partial) {
        /* The store is sound: as soon as there is a frame, the block is worth another try. */
        block->flags |= PG_STARVED;
        job.slot = PG_NO_SLOT;
        job.recovering = 1;
        job.began = NEVER; /* this may take as long as it does */
        job.not_before = pg_now() + RECOVERY_PAUSE;
        pg_put_job(region, job);
    }
}

void pg_recover(struct pg_region *region, struct pg_job job)
{
    struct pg_block *block = &region->blocks.at[job.entry];
    uint16_t slot = pg_slot_for_block(region);

    if (slot != PG_NO_SLOT)
        pg_slot_back(region, slot, !pg_is_fresh_slot(&region->frames, slot));
    if (block->number != job.number || block->state != PG_ERROR || !(block->flags & PG_STARVED))
        return; /* evicted meanwhile */
    if (slot == PG_NO_SLOT) {
        job.not_before = pg_now() + RECOVERY_PAUSE;
        if (!pg_put_job(region, job))
            return;
    }
    pg_become(&region->blocks, job.entry, PG_ABSENT);
    pg_discard(&region->uffd, pg_block_address(region, job.number), region->block_size);
}

uint64_t pg_backoff(uint64_t tries)
{
    return UINT64_C(1000000) << (tries > 8 ? 8 : tries ? tries - 1 : 0);
}

/* Whether a block that cannot be had for want of memory, or is in memory already and cannot be put
 * where it is wanted, is tried for as long as it takes: its store is sound, and perhaps has it not.
 */
static int is_kept(const struct pg_region *region, const struct pg_job *job, int error)
{
    unsigned flags = region->blocks.at[job->entry].flags;

    if (job->slot == PG_NO_SLOT)
        return error == PG_NO_MEMORY;
    return error == ENOMEM || error == EBUSY || error == EAGAIN ||
           (flags & PG_DIRTY && !(flags & PG_PARTIAL));
}

void pg_put_off(struct pg_region *region, struct pg_job job, int error, uint64_t pause, int starved)
{
    uint64_t now = pg_now(), deadline = pg_later(job.began, region->timeout);

    if (now >= deadline && is_kept(region, &job, error)) {
        describe_wait(region, job.number, error, now);
        job.began = NEVER;
        deadline = UINT64_MAX;
    }
    pg_trace_moment(region->base, PG_TRACE_RETRY, job.number * region->block_size,
                    region->block_size, error);
    if (now < deadline) {
        job.not_before = now + pause < deadline ? now + pause : deadline;
        job.starved = starved;
        if (!pg_put_job(region, job)) {
            /* The event loop sees to it that it is not forgotten, if workers are kept too long. */
            if (starved)
                pg_look_at_jobs(region);
            return;
        }
    }
    if (job.slot != PG_NO_SLOT)
        pg_slot_back(region, job.slot, 1);
    fail(region, job, error, starved);
}

/* Many blocks at once, anywhere in a region.
 *
 * A list of runs is read part by part, several parts at a time: of a file by threads that are
 * started for it, which have the pager's descriptors and keep the device busy; of a helper's store
 * by the workers, one for each lane, for which a block that a thread waits for comes first. What a
 * part could not bring, for want of a frame or of the store, is tried again at the end, with all
 * patience. Every block goes through the same states as one that is read ahead. */
#include "pager/engine/gather.h"

#include <errno.h>

#include "pager/engine/arriving.h"
#include "pager/engine/asked.h"
#include "pager/engine/choice.h"
#include "pager/mechanisms/interruption.h"
#include "pager/mechanisms/threads.h"

enum {
    THREADS = 16,      /* that help with one list: as many reads as a disk does at once */
    MOST_THREADS = 32, /* that help in a region */
    PARTS_EACH = 4,    /* a thread is not worth starting for less */
    PART = 512 << 10,  /* bytes of one read */
    AT_ONCE = 4096,    /* blocks that are looked at before others may have the lock */
};

/* ns to wait for a frame. */
#define FRAME_PAUSE UINT64_C(100000000)

static void relax(struct pg_region *region)
{
    pthread_mutex_unlock(&region->lock);
    pthread_mutex_lock(&region->lock);
}

static int is_over(const struct pg_region *region, const struct pg_gather *gather)
{
    return gather->run == gather->run_count || gather->called_off || gather->failed || region->stop;
}

uint64_t pg_gatherable(struct pg_region *region)
{
    uint64_t most;

    pthread_mutex_lock(&region->lock);
    most = region->frames.limited ? pg_most_at_once(region) : region->nblocks;
    pthread_mutex_unlock(&region->lock);
    return (most ? most : 1) * region->block_size;
}

/* Whether a block is there; then it is used now, and not the next one to leave. */
static int note_used(struct pg_region *region, uint32_t number)
{
    pg_entry entry = pg_find(&region->blocks, number);
    enum pg_list list;

    if (entry == PG_NONE || region->blocks.at[entry].state != PG_RESIDENT)
        return 0;
    list = region->blocks.at[entry].list;
    if (list == PG_ONCE || list == PG_HOT)
        pg_push_tail(&region->blocks, list, entry);
    return 1;
}

uint64_t pg_note_used(struct pg_region *region, const struct pg_run *runs, size_t count)
{
    uint64_t missing = 0, looked = 0;

    pthread_mutex_lock(&region->lock);
    for (size_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < runs[i].count; k++) {
            missing += !note_used(region, runs[i].first + k);
            if (++looked % AT_ONCE == 0)
                relax(region);
        }
    pthread_mutex_unlock(&region->lock);
    return missing;
}

/* Map a block that stands by, as a touch would. Drops the lock. */
static void rescue(struct pg_region *region, pg_entry entry)
{
    struct pg_block *block = &region->blocks.at[entry];
    struct pg_job job = {
        .entry = entry, .number = block->number, .slot = block->slot, .began = pg_now()};

    pg_note_rescued(region, entry);
    pg_unlist(&region->blocks, entry);
    pg_become(&region->blocks, entry, PG_FILLING);
    pg_do_job(region, job);
}

/* The next block of a list; 0: there is none. */
static int next_block(struct pg_gather *gather, uint32_t *number)
{
    if (gather->run == gather->run_count)
        return 0;
    *number = gather->runs[gather->run].first + gather->offset;
    if (++gather->offset == gather->runs[gather->run].count) {
        gather->run++;
        gather->offset = 0;
    }
    return 1;
}

/* Blocks that follow each other, none of which was there. May drop the lock. */
static struct pg_request next_part(struct pg_region *region, struct pg_gather *gather)
{
    struct pg_request part = {.stride = 1, .marker = -1};
    uint32_t number, looked = 0;

    while (part.count < gather->part_most && !is_over(region, gather)) {
        struct pg_gather before = *gather;
        pg_entry entry;
        if (!next_block(gather, &number))
            break;
        entry = pg_find(&region->blocks, number);
        if (part.count && (entry != PG_NONE || number != part.next + part.count)) {
            gather->run = before.run;
            gather->offset = before.offset;
            break;
        }
        if (entry == PG_NONE) {
            if (!part.count++)
                part.next = number;
        } else if (region->blocks.at[entry].state == PG_STAGED) {
            rescue(region, entry);
        } else if (++looked % AT_ONCE == 0) {
            relax(region);
        }
    }
    return part;
}

/* Read a part. Without a frame, wait for one as long as others of the list hold some, or changed
 * blocks may be written. Drops the lock. */
static void read_part(struct pg_region *region, struct pg_gather *gather, struct pg_request part)
{
    uint64_t until = pg_now() + FRAME_PAUSE;

    while (part.count && !gather->called_off && !gather->failed && !region->stop) {
        struct pg_request rest = part;
        int error = 0;
        uint32_t got = pg_read_part(region, &rest, &error);
        /* Of a store that does not answer each part would take all patience. */
        gather->failed |= error == -PG_NO_ANSWER;
        if (rest.next > part.next) {
            part.count -= (uint32_t)(rest.next - part.next);
            part.next = rest.next;
            if (got)
                until = pg_now() + FRAME_PAUSE;
        } else if (pg_find(&region->blocks, (uint32_t)part.next) != PG_NONE) {
            /* Another thread was faster. */
            part.next++;
            part.count--;
        } else if ((gather->busy == 1 && !region->blocks.dirty) || pg_wait_changed(region, until)) {
            return;
        }
    }
}

/* 0: nothing of the list is left. Drops the lock. */
static int help(struct pg_region *region, struct pg_gather *gather)
{
    if (is_over(region, gather))
        return 0;
    gather->busy++;
    read_part(region, gather, next_part(region, gather));
    gather->busy--;
    if (!gather->busy && is_over(region, gather))
        pthread_cond_broadcast(&region->changed);
    return 1;
}

int pg_read_gather(struct pg_region *region)
{
    for (struct pg_gather *gather = region->gathers; gather; gather = gather->next)
        if (help(region, gather))
            return 1;
    return 0;
}

/* A thread that was started for one list. */
struct helping {
    struct pg_region *region;
    struct pg_gather *gather;
};

static void *help_all(void *argument)
{
    const struct helping *helping = argument;
    struct pg_region *region = helping->region;

    pthread_mutex_lock(&region->lock);
    while (help(region, helping->gather))
        ;
    region->gatherers--;
    pthread_mutex_unlock(&region->lock);
    return NULL;
}

/* Where there cannot be so many, or none at all, it takes longer. Returns how many there are. Drops
 * the lock. */
static uint32_t start_threads(struct helping *helping, uint32_t wanted, pthread_t *threads)
{
    struct pg_region *region = helping->region;
    uint32_t count = 0;

    if (wanted > MOST_THREADS - region->gatherers)
        wanted = MOST_THREADS - region->gatherers;
    region->gatherers += wanted;
    pthread_mutex_unlock(&region->lock);
    while (count < wanted &&
           !pg_start_thread(&threads[count], "pagemove-gather", help_all, helping))
        count++;
    pthread_mutex_lock(&region->lock);
    region->gatherers -= wanted - count;
    return count;
}

static uint64_t clamp(uint64_t value, uint64_t least, uint64_t most)
{
    return value > most ? most : value < least ? least : value;
}

/* What is under way takes an eighth of the frames at most, so that it does not push out the list's
 * own beginning. */
static uint32_t choose_parts(struct pg_region *region, struct pg_gather *gather, uint64_t missing)
{
    /* Of three quarters, with what a budget has left. */
    uint64_t share = region->frames.limited ? pg_most_at_once(region) / 6 : UINT32_MAX / 8;
    uint64_t readers = pg_has_helper(region) ? region->workers : THREADS;
    uint64_t slots = region->frames.incoming_slots / (MOST_THREADS / THREADS);

    /* Without a slot others would have to leave, whatever the limit. */
    if (!pg_has_helper(region) && share > slots)
        share = slots;

    readers = clamp(share, 1, readers);
    gather->part_most = (uint32_t)clamp(share / readers, 1,
                                        clamp(PART / region->block_size, 1, region->chunk_most));
    return (uint32_t)clamp(missing / gather->part_most / PARTS_EACH, 1, readers) - 1;
}

static void enter(struct pg_region *region, struct pg_gather *gather)
{
    struct pg_gather **last = &region->gathers;

    while (*last)
        last = &(*last)->next;
    *last = gather;
    if (pg_has_helper(region))
        pthread_cond_broadcast(&region->work);
}

static void leave(struct pg_region *region, const struct pg_gather *gather)
{
    struct pg_gather **at = &region->gathers;

    while (*at != gather)
        at = &(*at)->next;
    *at = gather->next;
}

/* Until all parts have been tried. Drops the lock. */
static void finish(struct pg_region *region, struct pg_gather *gather)
{
    do
        gather->called_off = pg_is_called_off();
    while (!pg_has_helper(region) && help(region, gather));
    while (gather->busy || !is_over(region, gather)) {
        pg_wait_changed(region, UINT64_MAX);
        gather->called_off |= pg_is_called_off();
    }
}

/* What was not had at the first try. The first that cannot be read ends it: with a store that fails
 * each would take all patience. Drops the lock. */
static int insist(struct pg_region *region, const struct pg_run *runs, size_t count)
{
    uint32_t looked = 0;
    int error = 0;

    for (size_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < runs[i].count && !error; k++) {
            if (pg_is_called_off())
                return -PG_INTERRUPTED;
            error = pg_insist(region, runs[i].first + k);
            if (++looked % AT_ONCE == 0)
                relax(region);
        }
    return error;
}

int pg_do_gather(struct pg_region *region, const struct pg_run *runs, size_t count, int wait)
{
    struct pg_gather gather = {.runs = runs, .run_count = count};
    uint64_t missing = pg_note_used(region, runs, count);
    struct helping helping = {region, &gather};
    pthread_t threads[THREADS];
    uint32_t wanted, started = 0;
    int error = 0;

    pthread_mutex_lock(&region->lock);
    wanted = choose_parts(region, &gather, missing);
    enter(region, &gather);
    if (!pg_has_helper(region))
        started = start_threads(&helping, wanted, threads);
    finish(region, &gather);
    leave(region, &gather);
    if (wait)
        error = insist(region, runs, count);
    pthread_mutex_unlock(&region->lock);
    while (started)
        pthread_join(threads[--started], NULL);
    return error;
}

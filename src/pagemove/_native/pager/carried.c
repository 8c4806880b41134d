/* Compressed memory in a forked child.
 *
 * What is compressed is memory of the process, and the child has it as it has any other. Of the
 * region it has the pages that are resident, shared until one of both writes to them or evicts
 * them. The userfaultfd, the pager's threads and its descriptors it has not: all of these are made
 * anew, in the same structure, while the program is still in fork, for from then on it may touch a
 * block that is not resident. What is in files (spill) both read from then on, and neither writes
 * over (spilled.h).
 *
 * So that the child finds each block either resident or in the store, the fork waits until none is
 * on its way from one to the other with changes, and then a thread of the pager keeps all locks
 * that a change of either takes. It is not the thread that forks, to be able to give up. */
#define _GNU_SOURCE
#include "pager/carried.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "generation.h"
#include "paged.h"
#include "pager/calls.h"
#include "pager/engine/choice.h"
#include "pager/engine/work.h"
#include "pager/inherited.h"
#include "pager/life.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/spilled.h"
#include "pager/mechanisms/threads.h"
#include "pager/opening.h"
#include "uapi.h"

/* ns that a fork waits for blocks on their way; what takes longer the child does not have. */
#define PATIENCE UINT64_C(5000000000)

/* ns that a region is held until the kernel forks. Other libraries' handlers of a fork may wait for
 * their threads, which may wait for a fault: then the child does not have the region. */
#define LONGEST UINT64_C(1000000000)

enum { LONGEST_REASON = 768 };

static void *at(const struct pg_region *region)
{
    return (void *)(uintptr_t)region->base;
}

/* Of a block that is filled only in part the region has the newest contents of the other pages. */
static int is_there(const struct pg_block *block)
{
    return block->state == PG_RESIDENT || (block->state == PG_FILLING && block->flags & PG_PARTIAL);
}

/* Whether some contents are in a slot alone. */
static int is_half_way(const struct pg_region *region)
{
    for (pg_entry entry = 0; entry < region->blocks.used; entry++) {
        const struct pg_block *block = &region->blocks.at[entry];
        if (block->state == PG_WRITING ||
            (block->state == PG_FILLING && block->flags & PG_DIRTY && !is_there(block)))
            return 1;
    }
    return 0;
}

static int can_carry(const struct pg_region *region)
{
    /* Without a stone it is about to be lost, or closed. */
    return region->carries && region->stone && !region->plain && !region->stop &&
           !pg_is_lost(region) && !region->uffd.poisoned &&
           !__atomic_load_n(&region->ending, __ATOMIC_ACQUIRE);
}

const uint64_t *pg_carried_in(const struct pg_region *region)
{
    return &region->carried_in;
}

/* Wants the lock of calls. */
static void become(struct pg_region *region, enum pg_hold holding)
{
    region->holding = holding;
    pthread_cond_broadcast(&region->held);
}

static int is_asked(struct pg_region *region)
{
    int asked;

    pthread_mutex_lock(&region->calls_lock);
    asked = region->holding == PG_HOLD_ASKED;
    pthread_mutex_unlock(&region->calls_lock);
    return asked;
}

/* Also for what is cloned without us, and would read zeros where a block is missing. This waits for
 * a fork that copies memory now, so either the child has all of it as it was while it was held, or
 * nothing. */
static void forbid(const struct pg_region *region)
{
    madvise(at(region), region->length, MADV_DONTFORK);
}

/* Find what the child may have in memory. With others in a budget, each would have all of it. */
static int limit_there(struct pg_region *region)
{
    struct pg_budget_counters counters = {.total = region->opening->config.limit, .members = 1};

    if (region->budget)
        pg_budget_counters(region->budget, &counters);
    region->carried_limit = counters.total;
    return counters.members == 1;
}

/* Wants the region's lock. */
static int can_be_held(struct pg_region *region)
{
    uint64_t until = pg_now() + PATIENCE;

    while (can_carry(region) && is_half_way(region) && is_asked(region) &&
           !pg_wait_changed(region, until))
        ;
    if (!can_carry(region) || is_half_way(region) || !is_asked(region) || !limit_there(region))
        return 0;
    if (!madvise(at(region), region->length, MADV_DOFORK))
        return 1;
    forbid(region);
    return 0;
}

/* Hold the region as it is, until the process has been forked. */
static int hold(struct pg_region *region, struct pg_call *call)
{
    pthread_mutex_t *memory = pg_compressed_lock(region->store.compressed);
    uint64_t until;

    (void)call;
    if (!is_asked(region))
        return 0; /* the fork has not waited for it, or an earlier call has done it */
    pthread_mutex_lock(&region->lock);
    region->staying = 1;
    if (can_be_held(region)) {
        /* Until then a page that cannot move is pinned. */
        region->uffd.forked = 1;
        pthread_mutex_lock(memory);
        pg_spills_freeze(pg_compressed_files(region->store.compressed));
        pthread_mutex_lock(&region->calls_lock);
        region->holder = gettid();
        if (region->holding == PG_HOLD_ASKED)
            become(region, PG_HELD);
        until = pg_now() + LONGEST;
        while (region->holding == PG_HELD && pg_now() < until)
            pg_sleep_until(&region->held, &region->calls_lock, until);
        pthread_mutex_unlock(&region->calls_lock);
        forbid(region);
        pthread_mutex_unlock(memory);
    }
    region->staying = 0;
    pg_frame_available(region);
    pthread_mutex_unlock(&region->lock);
    pthread_mutex_lock(&region->calls_lock);
    become(region, PG_NOT_HELD);
    pthread_mutex_unlock(&region->calls_lock);
    return 0;
}

void pg_carry(struct pg_region *region)
{
    uint64_t until = pg_now() + 2 * PATIENCE;

    region->carried = 0;
    if (!__atomic_load_n(&region->carries, __ATOMIC_ACQUIRE) || pg_is_plain(region))
        return;
    pthread_mutex_lock(&region->calls_lock);
    region->holding = PG_HOLD_ASKED;
    pthread_mutex_unlock(&region->calls_lock);
    if (pg_post_call(region, &(struct pg_call){.function = hold, .posted = 1}))
        until = 0;
    pthread_mutex_lock(&region->calls_lock);
    while (region->holding == PG_HOLD_ASKED && pg_now() < until)
        pg_sleep_until(&region->held, &region->calls_lock, until);
    region->carried = region->holding == PG_HELD;
    if (region->holding == PG_HOLD_ASKED)
        become(region, PG_NOT_HELD);
    pthread_mutex_unlock(&region->calls_lock);
    region->lacking =
        region->carried
            ? pg_spills_lend(pg_compressed_files(region->store.compressed), region->holder)
            : 0;
}

void pg_carry_back(struct pg_region *region)
{
    if (!region->carried)
        return;
    region->carried = 0;
    pg_spills_take_back(pg_compressed_files(region->store.compressed));
    pthread_mutex_lock(&region->calls_lock);
    if (region->holding == PG_HELD)
        become(region, PG_LET_GO);
    while (region->holding == PG_LET_GO)
        pthread_cond_wait(&region->held, &region->calls_lock);
    pthread_mutex_unlock(&region->calls_lock);
}

int pg_is_carried(const struct pg_region *region)
{
    unsigned char there;

    return region->carried && !mincore(at(region), region->uffd.page_size, &there);
}

int pg_clear_carried(const struct pg_region *region)
{
    const struct pg_blocks *blocks = &region->former->blocks;

    for (pg_entry entry = 0; entry < blocks->used; entry++) {
        const struct pg_block *block = &blocks->at[entry];
        if (block->state != PG_ABSENT && !is_there(block) &&
            madvise((void *)(uintptr_t)pg_block_address(region, block->number), region->block_size,
                    MADV_DONTNEED_LOCKED))
            return -errno;
    }
    return madvise(at(region), region->length, MADV_DONTFORK) ? -errno : 0;
}

/* In no list: it is pinned in the parent, or being filled. */
static int adopt(struct pg_region *region, const struct pg_block *block)
{
    pg_entry entry = pg_begin(&region->blocks, block->number);

    if (entry == PG_NONE)
        return -ENOMEM;
    region->blocks.at[entry].hot = block->hot;
    pg_become(&region->blocks, entry, PG_RESIDENT);
    /* The kernel has dropped the write protection of clean ones. */
    pg_set_dirty(&region->blocks, entry, 1);
    if (block->in_place)
        pg_set_in_place(&region->blocks, entry, 1); /* as the store says that is carried along */
    else
        pg_count_frame(&region->frames, 1);
    if (block->list == PG_UNLISTED)
        pg_enlist(region, entry, 0);
    else
        pg_push_tail(&region->blocks, block->list, entry);
    return 0;
}

int pg_adopt_carried(struct pg_region *region)
{
    const struct pg_blocks *blocks = &region->former->blocks;
    int error = 0;

    /* In the order in which they would have left there. */
    for (int list = 0; list < PG_LISTS; list++)
        for (pg_entry entry = list == PG_UNLISTED ? PG_NONE : blocks->head[list];
             entry != PG_NONE && !error; entry = blocks->link[entry].next)
            if (is_there(&blocks->at[entry]))
                error = adopt(region, &blocks->at[entry]);
    for (pg_entry entry = 0; entry < blocks->used && !error; entry++)
        if (blocks->at[entry].list == PG_UNLISTED && is_there(&blocks->at[entry]))
            error = adopt(region, &blocks->at[entry]);
    return error;
}

/* A touch is SIGSEGV from now on. `former` has what it was in the parent. */
static void bury(struct pg_region *region, struct pg_region *former, const char *what, int error)
{
    char why[LONGEST_REASON];

    region->inherited = 1;
    pg_mark_grave(former->stone, former->base, former->length, former->store.label, former->mode,
                  former->remedy, 1);
    snprintf(why, sizeof why, "%.500s: %s%.200s", former->store.label, what,
             strerror(pg_errno_of(-error)));
    pg_explain_grave(former->stone, why);
    former->stone = NULL;
    pg_watch_graves();
}

/* What is left of it, which no thread uses any more. Its slots are not mapped here. */
static void forget(struct pg_region *former)
{
    pg_frames_free(&former->frames);
    pg_free_stone(former->stone);
    pg_store_free(&former->store, 1);
    pg_forget_region(former);
}

static void close_all(const int *files, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close(files[i]);
}

void pg_carry_on(struct pg_region *region)
{
    struct pg_region *former = malloc(sizeof *former);
    struct pg_config config;
    int files[PG_SPILLS], error = -ENOMEM;
    size_t count;

    pg_compressed_forked(region->store.compressed);
    count = pg_spills_descriptors(pg_compressed_files(region->store.compressed), files);
    if (!former || region->lacking) {
        bury(region, region, former ? "its files (spill), by /proc: " : "",
             former ? region->lacking : error);
        close_all(files, count);
        free(former);
        return;
    }
    *former = *region;
    config = former->opening->config;
    config.limit = former->carried_limit;
    /* Some thread of the parent may have had its lock. */
    config.budget = former->budget = NULL;
    pg_begin_region(region, &config);
    region->base = former->base;
    region->length = former->length;
    region->former = former;
    region->carries = 1;
    region->uffd.forked = 1;
    region->opening = pg_new_opening(&config);
    if (region->opening) {
        region->opening->config.kept = former->store.compressed;
        region->spilled = former->spilled;
        region->owned = former->owned;
        former->store.compressed = NULL;
        former->spilled = NULL;
        former->owned = NULL;
        error = pg_open_region(region);
        region->opening->config.kept = NULL;
    }
    region->former = NULL;
    /* The pager has them in a table of its own. */
    close_all(files, count);
    if (error) {
        bury(region, former, "", error);
    } else {
        pm_paged_enter(region->base, region->base + region->length);
        __atomic_store_n(&region->carried_in, pm_generation(), __ATOMIC_RELEASE);
    }
    forget(former);
}

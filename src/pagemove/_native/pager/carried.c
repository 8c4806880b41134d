/* Compressed memory in a forked child.
 *
 * What is compressed is memory of the process, and the child has it as it has any other. Of the
 * region it has the pages that are resident, shared until one of both writes to them or evicts
 * them. The userfaultfd, the pager's threads and its descriptors it has not: all of these are made
 * anew, in the same structure, while the program is still in fork, for from then on it may touch a
 * block that is not resident.
 *
 * So that the child finds each block either resident or in the store, the fork waits until none is
 * on its way from one to the other with changes, and none begins to leave meanwhile. */
#define _GNU_SOURCE
#include "pager/carried.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "generation.h"
#include "paged.h"
#include "pager/engine/choice.h"
#include "pager/engine/work.h"
#include "pager/inherited.h"
#include "pager/life.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/threads.h"
#include "pager/opening.h"

/* ns that a fork waits for blocks on their way; what takes longer the child does not have. */
#define PATIENCE UINT64_C(5000000000)

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
    return region->carries && !region->plain && !region->stop && !pg_is_lost(region) &&
           !region->uffd.poisoned && !__atomic_load_n(&region->ending, __ATOMIC_ACQUIRE);
}

const uint64_t *pg_carried_in(const struct pg_region *region)
{
    return &region->carried_in;
}

void pg_carry(struct pg_region *region)
{
    uint64_t until = pg_now() + PATIENCE;

    region->carried = 0;
    if (!region->carries)
        return;
    pthread_mutex_lock(&region->lock);
    region->staying = 1;
    while (can_carry(region) && is_half_way(region) && !pg_wait_changed(region, until))
        ;
    if (can_carry(region) && !is_half_way(region) &&
        !madvise(at(region), region->length, MADV_DOFORK)) {
        pg_compressed_hold(region->store.compressed);
        /* Until then a page that cannot move is pinned. */
        region->uffd.forked = 1;
        region->carried = 1;
        return;
    }
    region->staying = 0;
    pthread_mutex_unlock(&region->lock);
}

void pg_carry_back(struct pg_region *region)
{
    if (!region->carried)
        return;
    region->carried = region->staying = 0;
    pg_compressed_release(region->store.compressed);
    /* What is cloned without us would read zeros where a block is missing. */
    madvise(at(region), region->length, MADV_DONTFORK);
    pg_frame_available(region);
    pthread_mutex_unlock(&region->lock);
}

int pg_clear_carried(const struct pg_region *region)
{
    const struct pg_blocks *blocks = &region->former->blocks;

    for (pg_entry entry = 0; entry < blocks->used; entry++) {
        const struct pg_block *block = &blocks->at[entry];
        if (block->state != PG_ABSENT && !is_there(block) &&
            madvise((void *)(uintptr_t)pg_block_address(region, block->number), region->block_size,
                    MADV_DONTNEED))
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
    region->frames.total++;
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

/* A touch is SIGSEGV from now on. */
static void bury(struct pg_region *region, struct pg_region *former)
{
    region->inherited = 1;
    munmap(at(former), former->length);
    pg_mark_grave(former->stone, former->base, former->length, former->store.label, former->mode,
                  1);
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

void pg_carry_on(struct pg_region *region)
{
    struct pg_region *former = malloc(sizeof *former);
    int error = -ENOMEM;

    if (!former) {
        region->inherited = 1;
        munmap(at(region), region->length);
        return;
    }
    *former = *region;
    pg_begin_region(region, &former->opening->config);
    region->base = former->base;
    region->length = former->length;
    region->former = former;
    region->carries = 1;
    region->uffd.forked = 1;
    region->opening = pg_new_opening(&former->opening->config);
    if (region->opening) {
        pg_compressed_forked(former->store.compressed);
        region->opening->config.kept = former->store.compressed;
        region->spilled = former->spilled;
        former->store.compressed = NULL;
        former->spilled = NULL;
        error = pg_open_region(region);
        region->opening->config.kept = NULL;
    }
    region->former = NULL;
    if (error) {
        bury(region, former);
    } else {
        pm_paged_enter(region->base, region->base + region->length);
        __atomic_store_n(&region->carried_in, pm_generation(), __ATOMIC_RELEASE);
    }
    forget(former);
}

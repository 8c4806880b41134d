/* A region that is ordinary memory, as long as nothing of it has to leave.
 *
 * The kernel alone serves it then, by huge pages where the program has asked for them, and a fault
 * costs what it costs elsewhere. A child made by fork has it. When there is to be more in it than
 * its limit, it is registered with the userfaultfd, and what is there by then becomes resident. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/lease.h"
#include "pager/life.h"
#include "pager/pager.h"
#include "pager/shared.h"
#include "uapi.h"

const int *pg_plain_flag(const struct pg_region *region)
{
    return &region->plain;
}

static int for_all_there(struct pg_region *region, pg_found *function)
{
    uint64_t at = region->base;

    return pg_each_found(&region->uffd, &at, region->base + region->length, function, region);
}

/* A page that a child shares, or has shared, cannot move; written to, it is this process's own. */
static int make_own(void *argument, uint64_t start, uint64_t end)
{
    (void)argument;
    return madvise((void *)(uintptr_t)start, end - start, MADV_POPULATE_WRITE) ? -errno : 0;
}

static int adopt(void *argument, uint64_t start, uint64_t end)
{
    struct pg_region *region = argument;
    uint32_t first = (uint32_t)((start - region->base) / region->block_size);
    uint32_t last = (uint32_t)((end - 1 - region->base) / region->block_size);

    for (uint32_t number = first; number <= last; number++) {
        pg_entry entry = pg_find(&region->blocks, number);
        if (entry != PG_NONE)
            continue; /* its other pages were found before */
        entry = pg_begin(&region->blocks, number);
        if (entry == PG_NONE)
            return -ENOMEM;
        pg_become(&region->blocks, entry, PG_RESIDENT);
        pg_set_dirty(&region->blocks, entry, 1);
        pg_count_frame(&region->frames, 1);
        /* The newest leave first: what is to come is mostly computed from these, in order. */
        region->blocks.at[entry].flags |= PG_SEQUENCE;
        pg_enlist(region, entry, 1);
    }
    return 0;
}

static void disown(struct pg_region *region)
{
    for (pg_entry entry = 0; entry < region->blocks.used; entry++)
        if (region->blocks.at[entry].state == PG_RESIDENT) {
            pg_become(&region->blocks, entry, PG_ABSENT);
            pg_count_frame(&region->frames, -1);
        }
}

/* Wants the lock. Whoever touches a missing page meanwhile waits for the event loop, which waits
 * for the lock. */
static int engage(struct pg_region *region)
{
    void *base = (void *)(uintptr_t)region->base;
    struct pm_uffdio_range range = {region->base, region->length};
    int error = region->forked ? for_all_there(region, make_own) : 0;

    if (error)
        return error;
    /* Also where it fails, for a part is not mapped, the rest has been advised. */
    error = madvise(base, region->length, MADV_DONTFORK) ? -errno : 0;
    /* Parts may have been advised otherwise, and be mappings of their own because of that. */
    madvise(base, region->length, region->uffd.advice);
    if (!error)
        error = pg_register(region->uffd.region, region->base, region->length, region->uffd.mode);
    if (!error) {
        error = for_all_there(region, adopt);
        if (error) {
            disown(region);
            ioctl(region->uffd.region, PM_UFFDIO_UNREGISTER, &range);
        }
    }
    if (error)
        madvise(base, region->length, MADV_DOFORK);
    return error;
}

/* What is there by now has never been asked for. */
static void lease_adopted(struct pg_region *region)
{
    uint32_t before;

    do {
        before = region->frames.limit;
        if (region->frames.total > before)
            pg_lease_more(region);
    } while (region->frames.limit > before);
}

/* Pages around what was counted may be there too, where they were huge. */
static void evict_excess(struct pg_region *region)
{
    while (region->frames.total > region->frames.limit && !pg_empty_one(region, 1))
        ;
}

/* Whether the program has closed its descriptors, though the event loop may not know it yet: to
 * the program the region is ordinary memory until now. */
static int is_let_go(const struct pg_region *region)
{
    struct pollfd polled = {region->engine ? region->engine->watched : region->watched, 0, 0};

    return poll(&polled, 1, 0) > 0;
}

int pg_do_engage(struct pg_region *region)
{
    int error = 0;

    pg_hold_forks();
    pthread_mutex_lock(&region->lock);
    if (region->plain) {
        error = engage(region);
        if (!error) {
            region->let_go = is_let_go(region);
            __atomic_store_n(&region->plain, 0, __ATOMIC_RELEASE);
        }
    }
    pthread_mutex_unlock(&region->lock);
    pg_release_forks();
    if (error)
        return error;
    pthread_mutex_lock(&region->lock);
    lease_adopted(region);
    evict_excess(region);
    pthread_mutex_unlock(&region->lock);
    return 0;
}

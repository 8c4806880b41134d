/* An object of an arena goes to another place of its region. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "pager/calls.h"
#include "pager/engine/arriving.h"
#include "pager/engine/leaving.h"
#include "pager/pager.h"
#include "uapi.h"

/* Bytes that move before others may have the lock. */
enum { AT_ONCE = 4 << 20, HUGE = 2 << 20 };

/* Pages that are there, of a region that the kernel alone serves. One that cannot move, for a child
 * shares it, is copied: this is ordinary memory, and with the lock it stays that. */
static void move_pages(struct pg_region *region, uint64_t to, uint64_t from, uint64_t length)
{
    struct pg_uffd within = region->uffd;
    uint64_t page = within.page_size, step;
    struct pg_pages pages;

    within.staging = within.region;
    for (uint64_t done = 0; done < length; done += step) {
        step = HUGE - (from + done) % HUGE;
        step = step < length - done ? step : length - done;
        if (!pg_move_out(&within, to + done, from + done, step, &pages))
            continue;
        for (uint64_t at = 0; at < step; at += page)
            if (!pg_has(&pages, (unsigned)(at / page)))
                memcpy((void *)(uintptr_t)(to + done + at), (void *)(uintptr_t)(from + done + at),
                       page);
    }
}

struct way {
    struct pg_region *region;
    uint64_t to, from;
};

static int move_found(void *argument, uint64_t start, uint64_t end)
{
    const struct way *way = argument;

    move_pages(way->region, start - way->from + way->to, start, end - start);
    return 0;
}

static void move_there(struct pg_region *region, uint64_t to, uint64_t from, uint64_t length)
{
    struct way way = {region, to, from};
    uint64_t at = from;

    if (pg_each_found(&region->uffd, &at, from + length, move_found, &way))
        /* Holes too, which takes longer. */
        move_pages(region, at - from + to, at, from + length - at);
}

/* Where the kernel alone serves the region it is registered for moves, which changes nothing for
 * faults. */
static int prepare_plain(const struct pg_region *region)
{
    if (!region->uffd.moves)
        return -ENOTSUP;
    return pg_register(region->uffd.region, region->base, region->length, PM_REGISTER_MODE_WP);
}

static uint32_t shift_some(struct pg_region *region, uint32_t to, uint32_t from, uint32_t count)
{
    uint64_t size = region->block_size;

    if (!region->plain)
        return pg_shift_blocks(region, to, from, count);
    if (prepare_plain(region))
        return 0;
    move_there(region, region->base + to * size, region->base + from * size, count * size);
    return count;
}

static int shift(struct pg_region *region, struct pg_call *call)
{
    uint32_t to = (uint32_t)(call->to / region->block_size), done = 0, some, moved;
    uint32_t from = (uint32_t)(call->offset / region->block_size);
    uint32_t count = (uint32_t)(call->length / region->block_size);
    uint32_t step = AT_ONCE / (uint32_t)region->block_size;

    if (pg_is_lost(region))
        return -EBADF;
    do {
        some = count - done < step ? count - done : step;
        pthread_mutex_lock(&region->lock);
        moved = shift_some(region, to + done, from + done, some);
        pthread_mutex_unlock(&region->lock);
        done += moved;
    } while (moved == some && done < count);
    return (int)done;
}

int pg_shift(struct pg_region *region, uint64_t to, uint64_t from, uint64_t length)
{
    return pg_run_call(
        region, &(struct pg_call){.function = shift, .offset = from, .to = to, .length = length},
        NULL, 0);
}

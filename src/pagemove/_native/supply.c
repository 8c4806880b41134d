#define _GNU_SOURCE
#include "supply.h"

#include <string.h>
#include <sys/mman.h>

/* Objects of so many bytes are better in huge pages, as NumPy has them by default. */
#define HUGE_FROM (UINT64_C(4) << 20)
#define HUGE_SIZE (UINT64_C(2) << 20)

int pa_discard_blocks(struct pa_arena *arena, uint32_t first, uint32_t blocks)
{
    return arena->memory.discard(arena->memory.region, first * arena->block_size,
                                 blocks * arena->block_size);
}

void pa_discard_extent(struct pa_arena *arena, uint32_t first)
{
    struct extent *extent = &arena->extents[first];
    int failed = pa_discard_blocks(arena, first, extent->used);

    pthread_mutex_lock(&arena->lock);
    if (failed) {
        extent->state = LOST;
        arena->counters.lost += extent->blocks * arena->block_size;
    } else {
        pa_put_back(arena, first);
    }
    pthread_mutex_unlock(&arena->lock);
}

/* Take a kept extent from its place. Wants the lock. */
static uint32_t take_kept(struct pa_arena *arena, uint32_t place)
{
    uint32_t first = arena->kept[place];

    arena->kept_count--;
    memmove(&arena->kept[place], &arena->kept[place + 1],
            (arena->kept_count - place) * sizeof *arena->kept);
    arena->counters.kept -= arena->extents[first].used * arena->block_size;
    return first;
}

int pa_is_plain(const struct pa_arena *arena)
{
    return arena->memory.limit && __atomic_load_n(arena->memory.plain, __ATOMIC_ACQUIRE);
}

static int is_beyond_limit(const struct pa_arena *arena, uint64_t more)
{
    return arena->counters.used + arena->counters.kept + more > arena->memory.limit;
}

/* The place of the youngest that has so many blocks; NONE. */
static uint32_t find_kept(const struct pa_arena *arena, uint32_t least, uint32_t most,
                          uint32_t room)
{
    for (uint32_t place = arena->kept_count; place-- > 0;) {
        const struct extent *extent = &arena->extents[arena->kept[place]];

        if (extent->used >= least && extent->used <= most && extent->blocks >= room)
            return place;
    }
    return NONE;
}

uint32_t pa_reuse(struct pa_arena *arena, uint32_t blocks)
{
    uint32_t place = find_kept(arena, blocks, blocks + blocks / 8, blocks), first;

    /* An array that is made anew whenever it has become larger. */
    if (place == NONE)
        place = find_kept(arena, blocks - blocks / 2, blocks, blocks);
    if (place == NONE)
        return NONE;
    first = take_kept(arena, place);
    arena->extents[first].state = USED;
    if (arena->extents[first].used < blocks)
        arena->extents[first].used = blocks;
    return first;
}

int pa_keep(struct pa_arena *arena, uint32_t first)
{
    uint64_t bytes = arena->extents[first].used * arena->block_size;

    if (!pa_is_plain(arena) || arena->kept_count == KEPT_AT_MOST || is_beyond_limit(arena, bytes))
        return 0;
    arena->extents[first].state = KEPT;
    arena->kept[arena->kept_count++] = first;
    arena->counters.kept += bytes;
    return 1;
}

/* Have the oldest that is kept be free; there is one. Drops the lock. */
static void free_oldest(struct pa_arena *arena)
{
    uint32_t first = take_kept(arena, 0);

    pthread_mutex_unlock(&arena->lock);
    pa_discard_extent(arena, first);
    pthread_mutex_lock(&arena->lock);
}

static int engage(struct pa_arena *arena)
{
    int error = arena->memory.engage(arena->memory.region);

    if (!error)
        return 0;
    pthread_mutex_lock(&arena->lock);
    arena->counters.unserved++;
    arena->counters.unserved_error = -error;
    pthread_mutex_unlock(&arena->lock);
    return error;
}

int pa_hold_limit(struct pa_arena *arena, uint64_t more)
{
    int beyond;

    pthread_mutex_lock(&arena->lock);
    while (arena->kept_count && is_beyond_limit(arena, more))
        free_oldest(arena);
    beyond = is_beyond_limit(arena, more);
    pthread_mutex_unlock(&arena->lock);
    return beyond && pa_is_plain(arena) ? engage(arena) : 0;
}

static void advise(const struct pa_arena *arena, uint32_t first, uint32_t blocks)
{
    uint64_t start = arena->base + first * arena->block_size;
    uint64_t end = (start + blocks * arena->block_size) & ~(HUGE_SIZE - 1);

    start = (start + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1);
    if (end > start)
        madvise((void *)(uintptr_t)start, end - start, MADV_HUGEPAGE);
}

/* Address space costs nothing as long as there is plenty, and what has some behind it grows where
 * it is. Wants the lock. */
static uint32_t with_room(const struct pa_arena *arena, uint32_t blocks, uint32_t times)
{
    uint64_t wanted = (uint64_t)blocks * times;

    return arena->counters.free < arena->memory.length / 2 || wanted > arena->blocks / 8
               ? blocks
               : (uint32_t)wanted;
}

/* As far into a huge page as `like`, if that is none of NONE, so that huge pages can move there.
 * Wants the lock. */
static uint32_t take(struct pa_arena *arena, uint32_t blocks, uint32_t used, uint32_t like)
{
    uint32_t huge = (uint32_t)(HUGE_SIZE / arena->block_size), first;

    if (like == NONE || huge < 2)
        return pa_take(arena, blocks, used);
    first = pa_take(arena, blocks + huge - 1, used);
    return first == NONE ? NONE : pa_cut_head(arena, first, (like - first) % huge);
}

/* Wants the lock. */
static uint32_t find_room(struct pa_arena *arena, uint32_t blocks, uint32_t times, uint32_t like)
{
    uint32_t first = take(arena, with_room(arena, blocks, times), blocks, like);

    if (first == NONE)
        first = pa_take(arena, blocks, blocks);
    if (first != NONE && pa_is_plain(arena) && blocks * arena->block_size >= HUGE_FROM &&
        arena->huge)
        advise(arena, first, blocks);
    return first;
}

void pa_count_refused(struct pa_arena *arena, int full)
{
    arena->counters.refused++;
    arena->counters.full += (uint64_t)full;
    arena->counters.used_then = arena->counters.used;
    arena->counters.largest_then = pa_largest(arena) * arena->block_size;
}

uint32_t pa_make_room(struct pa_arena *arena, uint32_t blocks, uint32_t times, uint32_t like)
{
    uint32_t first;

    pthread_mutex_lock(&arena->lock);
    first = find_room(arena, blocks, times, like);
    while (first == NONE && arena->kept_count) {
        free_oldest(arena);
        first = find_room(arena, blocks, times, like);
    }
    if (first == NONE)
        pa_count_refused(arena, 0);
    pthread_mutex_unlock(&arena->lock);
    return first;
}

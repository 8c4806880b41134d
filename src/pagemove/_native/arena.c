#define _GNU_SOURCE
#include "arena.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "generation.h"
#include "guard.h"
#include "process.h"
#include "supply.h"

/* What is larger is left to the kernel to clear, when it is touched. */
#define CLEARED_AT_MOST (UINT64_C(32) << 20)

enum { SHIFTED_FROM = 4 /* blocks */ };

static uint32_t blocks_of(const struct pa_arena *arena, uint64_t nbytes)
{
    uint64_t blocks = nbytes / arena->block_size + (nbytes % arena->block_size != 0);

    return blocks > arena->blocks ? NONE : blocks ? (uint32_t)blocks : 1;
}

static void *address_of(const struct pa_arena *arena, uint32_t first)
{
    return (void *)(uintptr_t)(arena->base + first * arena->block_size);
}

static uint32_t number_of(const struct pa_arena *arena, const void *object)
{
    return (uint32_t)(((uint64_t)(uintptr_t)object - arena->base) / arena->block_size);
}

/* Wants the lock. */
static void count_used(struct pa_arena *arena, int64_t blocks)
{
    arena->counters.used += (uint64_t)(blocks * (int64_t)arena->block_size);
    if (arena->counters.used > arena->counters.peak)
        arena->counters.peak = arena->counters.used;
}

static void refuse(struct pa_arena *arena, int full)
{
    pthread_mutex_lock(&arena->lock);
    pa_count_refused(arena, full);
    pthread_mutex_unlock(&arena->lock);
}

/* Whether an object can have so many blocks more. What is refused is a MemoryError; what is not,
 * and has no room when it is touched, is the end of the thread. */
static int has_room(struct pa_arena *arena, uint32_t blocks, int zeros)
{
    int full = !pa_is_plain(arena) &&
               arena->memory.full(arena->memory.region, blocks * arena->block_size, zeros);

    if (full)
        refuse(arena, 1);
    return !full;
}

/* The pager reads nothing ahead that no object has. Wants the lock. */
static void note_owned(struct pa_arena *arena, uint32_t first, uint32_t blocks, int owned)
{
    for (uint32_t at = first, end = first + blocks, n; at < end; at += n) {
        uint64_t mask, *word = &arena->memory.owned[at / 64];

        n = 64 - at % 64 < end - at ? 64 - at % 64 : end - at;
        mask = (UINT64_MAX >> (64 - n)) << at % 64;
        if (owned)
            __atomic_fetch_or(word, mask, __ATOMIC_RELEASE);
        else
            __atomic_fetch_and(word, ~mask, __ATOMIC_RELEASE);
    }
}

/* An extent has become an object. Wants the lock. */
static void count_object(struct pa_arena *arena, uint32_t first)
{
    note_owned(arena, first, arena->extents[first].used, 1);
    arena->counters.reserved += arena->extents[first].blocks * arena->block_size;
    arena->counters.objects++;
    arena->counters.allocated++;
    count_used(arena, arena->extents[first].used);
}

/* An object is none any more. Wants the lock. */
static void discount_object(struct pa_arena *arena, uint32_t first)
{
    note_owned(arena, first, arena->extents[first].used, 0);
    count_used(arena, -(int64_t)arena->extents[first].used);
    arena->counters.reserved -= arena->extents[first].blocks * arena->block_size;
    arena->counters.objects--;
}

/* All arenas of this process: nobody changes one while it is forked, for the child may have it. */
static pthread_mutex_t arenas_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pa_arena *arenas;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void)
{
    pthread_mutex_lock(&arenas_lock);
    for (struct pa_arena *arena = arenas; arena; arena = arena->next)
        pthread_mutex_lock(&arena->lock);
}

static void after_fork(void)
{
    for (struct pa_arena *arena = arenas; arena; arena = arena->next)
        pthread_mutex_unlock(&arena->lock);
    pthread_mutex_unlock(&arenas_lock);
}

static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
}

static void enter(struct pa_arena *arena)
{
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&arenas_lock);
    arena->next = arenas;
    arenas = arena;
    pthread_mutex_unlock(&arenas_lock);
}

static void leave(const struct pa_arena *arena)
{
    struct pa_arena **at = &arenas;

    pthread_mutex_lock(&arenas_lock);
    while (*at != arena)
        at = &(*at)->next;
    *at = arena->next;
    pthread_mutex_unlock(&arenas_lock);
}

struct pa_arena *pa_new(const struct pa_memory *memory)
{
    struct pa_arena *arena = calloc(1, sizeof *arena);

    if (!arena)
        return NULL;
    arena->memory = *memory;
    arena->base = memory->base;
    arena->block_size = memory->block_size;
    arena->huge = !(pm_running_defects() & PM_DEFECT_SPLIT_SPIN);
    arena->movable = arena->huge && !(pm_running_defects() & PM_DEFECT_HUGE_ZERO);
    arena->blocks = (uint32_t)(memory->length / memory->block_size);
    if (pa_begin_extents(arena)) {
        free(arena);
        return NULL;
    }
    pthread_mutex_init(&arena->lock, NULL);
    enter(arena);
    return arena;
}

void pa_free_arena(struct pa_arena *arena)
{
    leave(arena);
    pa_end_extents(arena);
    pthread_mutex_destroy(&arena->lock);
    free(arena);
}

int pa_has(const struct pa_arena *arena, const void *object)
{
    return (uint64_t)(uintptr_t)object - arena->base < arena->memory.length;
}

int pa_is_carried(const struct pa_arena *arena)
{
    uint64_t generation = __atomic_load_n(arena->memory.carried_in, __ATOMIC_ACQUIRE);

    return generation && generation == pm_generation_known();
}

int pa_is_lost(const struct pa_arena *arena)
{
    return __atomic_load_n(arena->memory.lost, __ATOMIC_ACQUIRE);
}

void *pa_allocate(struct pa_arena *arena, uint64_t nbytes, int zeros)
{
    uint32_t blocks = blocks_of(arena, nbytes), first = NONE;
    int clears;
    void *object;

    if (blocks == NONE) {
        refuse(arena, 0);
        return NULL;
    }
    if (!has_room(arena, blocks, zeros))
        return NULL;
    pthread_mutex_lock(&arena->lock);
    if (!zeros || nbytes <= CLEARED_AT_MOST)
        first = pa_reuse(arena, blocks);
    pthread_mutex_unlock(&arena->lock);
    clears = zeros && first != NONE;
    if (first == NONE)
        first = pa_make_room(arena, blocks, 2, NONE);
    if (first == NONE)
        return NULL;
    pthread_mutex_lock(&arena->lock);
    count_object(arena, first);
    pthread_mutex_unlock(&arena->lock);
    object = address_of(arena, first);
    if (pa_hold_limit(arena, 0)) {
        pa_release(arena, object);
        return NULL;
    }
    if (clears)
        memset(object, 0, nbytes);
    return object;
}

/* Without the lock, which another thread may have had when this process was forked. Nobody else
 * changes it. */
uint64_t pa_room(struct pa_arena *arena, const void *object)
{
    return arena->extents[number_of(arena, object)].used * arena->block_size;
}

static void set_used(struct pa_arena *arena, uint32_t first, uint32_t used)
{
    struct extent *extent = &arena->extents[first];

    pthread_mutex_lock(&arena->lock);
    count_used(arena, (int64_t)used - extent->used);
    extent->used = used;
    pthread_mutex_unlock(&arena->lock);
}

static void set_owned(struct pa_arena *arena, uint32_t first, uint32_t blocks, int owned)
{
    pthread_mutex_lock(&arena->lock);
    note_owned(arena, first, blocks, owned);
    pthread_mutex_unlock(&arena->lock);
}

/* One that cannot be made smaller stays as it is: what is behind it has to be zeros. */
static void shrink(struct pa_arena *arena, uint32_t first, uint32_t used, uint32_t wanted)
{
    set_owned(arena, first + wanted, used - wanted, 0);
    if (pa_discard_blocks(arena, first + wanted, used - wanted))
        set_owned(arena, first + wanted, used - wanted, 1);
    else
        set_used(arena, first, wanted);
}

/* 1: it has so many blocks now, where it is. -1: it cannot have them. */
static int resize_here(struct pa_arena *arena, uint32_t first, uint32_t wanted)
{
    struct extent *extent = &arena->extents[first];
    uint32_t used, done;

    pthread_mutex_lock(&arena->lock);
    used = extent->used;
    if (wanted > extent->blocks)
        pa_extend(arena, first, wanted);
    done = wanted <= extent->blocks;
    pthread_mutex_unlock(&arena->lock);
    if (!done || wanted == used)
        return (int)done;
    if (wanted < used) {
        shrink(arena, first, used, wanted);
        return 1;
    }
    set_used(arena, first, wanted);
    if (pa_hold_limit(arena, 0)) {
        set_used(arena, first, used);
        return -1;
    }
    set_owned(arena, first + used, wanted - used, 1);
    return 1;
}

/* Have the blocks of an object be those of an extent. Bytes, from the first on, of which that is
 * true. A few are copied in less time than it takes to ask. */
static uint64_t shift(struct pa_arena *arena, uint32_t to, uint32_t from, uint32_t blocks)
{
    int done = 0;

    /* Once it is served it always is. */
    if (blocks >= SHIFTED_FROM && (arena->movable || !pa_is_plain(arena)))
        done = arena->memory.shift(arena->memory.region, to * arena->block_size,
                                   from * arena->block_size, (uint64_t)blocks * arena->block_size);
    return done > 0 ? (uint64_t)done * arena->block_size : 0;
}

/* Have an object be elsewhere, where it can have so many blocks. */
static void *move(struct pa_arena *arena, uint32_t first, uint32_t wanted)
{
    uint64_t used = arena->extents[first].used * arena->block_size, done;
    uint32_t to = pa_make_room(arena, wanted, 8, first);

    if (to == NONE)
        return NULL;
    done = pa_hold_limit(arena, wanted * arena->block_size - used)
               ? 0
               : shift(arena, to, first, arena->extents[first].used);
    /* There are both while it is copied. */
    if (done < used && pa_hold_limit(arena, wanted * arena->block_size) && !done) {
        pa_discard_extent(arena, to);
        return NULL;
    }
    /* Before it is touched, or each touch is answered only when it comes again (faults.c). */
    set_owned(arena, to, arena->extents[first].used, 1);
    memcpy((char *)address_of(arena, to) + done, (char *)address_of(arena, first) + done,
           used - done);
    pthread_mutex_lock(&arena->lock);
    arena->counters.moved += used - done;
    discount_object(arena, first);
    count_object(arena, to);
    pthread_mutex_unlock(&arena->lock);
    pa_discard_extent(arena, first);
    return address_of(arena, to);
}

void *pa_resize(struct pa_arena *arena, void *object, uint64_t nbytes)
{
    uint32_t first = number_of(arena, object), wanted = blocks_of(arena, nbytes);
    uint32_t used = arena->extents[first].used;
    int done;

    if (wanted != NONE && wanted > used && !has_room(arena, wanted - used, 0))
        return NULL;
    done = wanted == NONE ? 0 : resize_here(arena, first, wanted);
    if (done)
        return done > 0 ? object : NULL;
    if (wanted != NONE)
        return move(arena, first, wanted);
    refuse(arena, 0);
    return NULL;
}

void pa_release(struct pa_arena *arena, void *object)
{
    uint32_t first = number_of(arena, object);
    int kept;

    pthread_mutex_lock(&arena->lock);
    discount_object(arena, first);
    kept = pa_keep(arena, first);
    pthread_mutex_unlock(&arena->lock);
    if (!kept)
        pa_discard_extent(arena, first);
}

int pa_set_limit(struct pa_arena *arena, uint64_t limit)
{
    pthread_mutex_lock(&arena->lock);
    arena->memory.limit = limit;
    pthread_mutex_unlock(&arena->lock);
    return pa_hold_limit(arena, 0);
}

/* Wants the lock. */
static uint64_t there(const struct pa_arena *arena, uint32_t first)
{
    enum { PAGES = 4096 };
    unsigned char vector[PAGES];
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), step = PAGES * page, pages = 0;
    uint64_t start = arena->base + first * arena->block_size;
    uint64_t end = start + arena->extents[first].used * arena->block_size;

    for (uint64_t at = start; at < end; at += step) {
        uint64_t length = end - at < step ? end - at : step;

        if (mincore((void *)(uintptr_t)at, length, vector))
            return 0;
        for (uint64_t i = 0; i < length / page; i++)
            pages += vector[i] & 1;
    }
    return pages * page;
}

uint64_t pa_plain_bytes(struct pa_arena *arena)
{
    uint64_t bytes = 0;

    pthread_mutex_lock(&arena->lock);
    for (uint32_t at = 0; at < arena->blocks && pa_is_plain(arena); at += arena->extents[at].blocks)
        if (arena->extents[at].state == USED || arena->extents[at].state == KEPT)
            bytes += there(arena, at);
    pthread_mutex_unlock(&arena->lock);
    return bytes;
}

void pa_counters(struct pa_arena *arena, struct pa_counters *counters)
{
    pthread_mutex_lock(&arena->lock);
    *counters = arena->counters;
    counters->largest = pa_largest(arena) * arena->block_size;
    pthread_mutex_unlock(&arena->lock);
}

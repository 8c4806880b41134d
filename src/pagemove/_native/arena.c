#define _GNU_SOURCE
#include "arena.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "process.h"

/* Free extents are listed by size: four classes between powers of two, so the first of any higher
 * class is large enough, and at most a quarter larger than need be. */
enum { CLASSES = 128, LOOKED_AT = 64 };

/* How many extents are kept. */
enum { KEPT_AT_MOST = 64 };

/* What is larger is left to the kernel to clear, when it is touched. */
#define CLEARED_AT_MOST (UINT64_C(32) << 20)

/* Objects of so many bytes are better in huge pages, as NumPy has them by default. */
#define HUGE_FROM (UINT64_C(4) << 20)
#define HUGE_SIZE (UINT64_C(2) << 20)

#define NONE UINT32_MAX

/* KEPT: it has been freed, and has what it had. */
enum { FREE, USED, KEPT, LOST };

/* At the number of its first block. Memory is taken by those that are in use only. */
struct extent {
    uint32_t blocks;     /* with the room to grow */
    uint32_t used;       /* of them, from the first on; the others are zeros */
    uint32_t before;     /* blocks of the extent before it */
    uint32_t prev, next; /* of its list, if it is free */
    uint32_t state;
};

struct pa_arena {
    struct pa_memory memory;
    int huge; /* pages may be: not where eviction loops forever on one that cannot be split */
    uint64_t base, block_size;
    uint32_t blocks;
    pthread_mutex_t lock;
    uint32_t kept[KEPT_AT_MOST], kept_count; /* the oldest first */
    struct extent *extents;
    uint64_t classes[CLASSES / 64]; /* a bit for each that has an extent */
    uint32_t head[CLASSES];
    struct pa_counters counters;
};

static uint64_t extents_bytes(const struct pa_arena *arena)
{
    return ((uint64_t)arena->blocks + 1) * sizeof *arena->extents;
}

/* The class of an extent. */
static unsigned class_of(uint32_t blocks)
{
    unsigned power = 31 - (unsigned)__builtin_clz(blocks);

    return power < 2 ? blocks - 1 : 4 * (power - 2) + 3 + (blocks >> (power - 2) & 3);
}

/* Whether all extents of the class are that large. */
static int is_least(uint32_t blocks)
{
    return blocks < 2 || class_of(blocks) != class_of(blocks - 1);
}

static void list(struct pa_arena *arena, uint32_t first)
{
    struct extent *extent = &arena->extents[first];
    unsigned class = class_of(extent->blocks);

    extent->state = FREE;
    extent->used = 0;
    extent->prev = NONE;
    extent->next = arena->head[class];
    if (extent->next != NONE)
        arena->extents[extent->next].prev = first;
    arena->head[class] = first;
    arena->classes[class / 64] |= UINT64_C(1) << class % 64;
    arena->counters.free += extent->blocks * arena->block_size;
}

static void unlist(struct pa_arena *arena, uint32_t first)
{
    struct extent *extent = &arena->extents[first];
    unsigned class = class_of(extent->blocks);

    if (extent->next != NONE)
        arena->extents[extent->next].prev = extent->prev;
    if (extent->prev != NONE)
        arena->extents[extent->prev].next = extent->next;
    else
        arena->head[class] = extent->next;
    if (arena->head[class] == NONE)
        arena->classes[class / 64] &= ~(UINT64_C(1) << class % 64);
    arena->counters.free -= extent->blocks * arena->block_size;
}

/* The one behind the last block has a record too: what is before it. */
static void set_length(struct pa_arena *arena, uint32_t first, uint32_t blocks)
{
    arena->extents[first].blocks = blocks;
    arena->extents[first + blocks].before = blocks;
}

static int is_free(const struct pa_arena *arena, uint32_t first)
{
    return first < arena->blocks && arena->extents[first].state == FREE;
}

/* Cut an extent in two, neither of which is on a list. */
static void split(struct pa_arena *arena, uint32_t first, uint32_t blocks)
{
    uint32_t rest = arena->extents[first].blocks - blocks;

    set_length(arena, first, blocks);
    set_length(arena, first + blocks, rest);
}

static void join_and_list(struct pa_arena *arena, uint32_t first)
{
    uint32_t next = first + arena->extents[first].blocks, before;

    if (is_free(arena, next)) {
        unlist(arena, next);
        set_length(arena, first, arena->extents[first].blocks + arena->extents[next].blocks);
    }
    before = first ? first - arena->extents[first].before : NONE;
    if (before != NONE && is_free(arena, before)) {
        unlist(arena, before);
        set_length(arena, before, arena->extents[before].blocks + arena->extents[first].blocks);
        first = before;
    }
    list(arena, first);
}

static uint32_t first_from(const struct pa_arena *arena, unsigned class)
{
    for (unsigned word = class / 64; word < CLASSES / 64; word++) {
        uint64_t bits = arena->classes[word];
        if (word == class / 64)
            bits &= ~UINT64_C(0) << class % 64;
        if (bits)
            return arena->head[word * 64 + (unsigned)__builtin_ctzll(bits)];
    }
    return NONE;
}

/* A free extent of so many blocks at least, NONE if there is none. */
static uint32_t find(const struct pa_arena *arena, uint32_t blocks)
{
    unsigned class = class_of(blocks);
    uint32_t found, looked = 0;

    for (found = is_least(blocks) ? NONE : arena->head[class]; found != NONE && looked < LOOKED_AT;
         found = arena->extents[found].next, looked++)
        if (arena->extents[found].blocks >= blocks)
            return found;
    return first_from(arena, is_least(blocks) ? class : class + 1);
}

/* Wants the lock. */
static uint32_t take(struct pa_arena *arena, uint32_t blocks, uint32_t used)
{
    uint32_t first = find(arena, blocks);

    if (first == NONE)
        return NONE;
    unlist(arena, first);
    if (arena->extents[first].blocks > blocks) {
        split(arena, first, blocks);
        list(arena, first + blocks);
    }
    arena->extents[first].state = USED;
    arena->extents[first].used = used;
    return first;
}

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

/* Address space costs nothing as long as there is plenty, and what has some behind it grows where
 * it is. Wants the lock. */
static uint32_t with_room(const struct pa_arena *arena, uint32_t blocks, uint32_t times)
{
    uint64_t wanted = (uint64_t)blocks * times;

    return arena->counters.free < arena->memory.length / 2 || wanted > arena->blocks / 8
               ? blocks
               : (uint32_t)wanted;
}

/* Have blocks of an extent that nobody else has be zeros. */
static int discard(struct pa_arena *arena, uint32_t first, uint32_t blocks)
{
    return arena->memory.discard(arena->memory.region, first * arena->block_size,
                                 blocks * arena->block_size);
}

/* Without the lock: nobody has a smaller or larger one while it is freed. */
static void discard_extent(struct pa_arena *arena, uint32_t first)
{
    struct extent *extent = &arena->extents[first];
    int failed = discard(arena, first, extent->used);

    pthread_mutex_lock(&arena->lock);
    if (failed) {
        extent->state = LOST;
        arena->counters.lost += extent->blocks * arena->block_size;
    } else {
        join_and_list(arena, first);
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

static int is_plain(const struct pa_arena *arena)
{
    return arena->memory.limit && __atomic_load_n(arena->memory.plain, __ATOMIC_ACQUIRE);
}

static int is_beyond_limit(const struct pa_arena *arena)
{
    return arena->counters.used + arena->counters.kept > arena->memory.limit;
}

/* The youngest that is as large, or a little larger. Wants the lock. */
static uint32_t reuse(struct pa_arena *arena, uint32_t blocks)
{
    for (uint32_t place = arena->kept_count; place-- > 0;) {
        const struct extent *extent = &arena->extents[arena->kept[place]];
        uint32_t first;

        if (extent->used < blocks || extent->used - blocks > blocks / 8)
            continue;
        first = take_kept(arena, place);
        arena->extents[first].state = USED;
        return first;
    }
    return NONE;
}

/* Keep the extent of an object that was freed, unless too many are. Wants the lock. */
static int keep(struct pa_arena *arena, uint32_t first)
{
    uint64_t bytes = arena->extents[first].used * arena->block_size;

    if (!is_plain(arena) || arena->kept_count == KEPT_AT_MOST ||
        arena->counters.used + arena->counters.kept + bytes > arena->memory.limit)
        return 0;
    arena->extents[first].state = KEPT;
    arena->kept[arena->kept_count++] = first;
    arena->counters.kept += bytes;
    return 1;
}

/* 0, or -errno: there is more in it than may be resident, and it cannot be evicted. */
static int hold_limit(struct pa_arena *arena)
{
    int beyond;

    pthread_mutex_lock(&arena->lock);
    while (arena->kept_count && is_beyond_limit(arena)) {
        uint32_t first = take_kept(arena, 0);

        pthread_mutex_unlock(&arena->lock);
        discard_extent(arena, first);
        pthread_mutex_lock(&arena->lock);
    }
    beyond = is_beyond_limit(arena);
    pthread_mutex_unlock(&arena->lock);
    return beyond && is_plain(arena) ? arena->memory.engage(arena->memory.region) : 0;
}

static void advise(const struct pa_arena *arena, uint32_t first, uint32_t blocks)
{
    uint64_t start = arena->base + first * arena->block_size;
    uint64_t end = (start + blocks * arena->block_size) & ~(HUGE_SIZE - 1);

    start = (start + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1);
    if (end > start)
        madvise((void *)(uintptr_t)start, end - start, MADV_HUGEPAGE);
}

/* Wants the lock. */
static uint32_t find_room(struct pa_arena *arena, uint32_t blocks, uint32_t times)
{
    uint32_t first = take(arena, with_room(arena, blocks, times), blocks);

    if (first == NONE)
        first = take(arena, blocks, blocks);
    if (first != NONE && is_plain(arena) && blocks * arena->block_size >= HUGE_FROM && arena->huge)
        advise(arena, first, blocks);
    return first;
}

static void *allocate(struct pa_arena *arena, uint64_t nbytes, uint32_t times, int zeros)
{
    uint32_t blocks = blocks_of(arena, nbytes), first = NONE;
    int clears = 0;
    void *object;

    pthread_mutex_lock(&arena->lock);
    if (blocks != NONE && (!zeros || nbytes <= CLEARED_AT_MOST))
        first = reuse(arena, blocks);
    clears = zeros && first != NONE;
    if (blocks != NONE && first == NONE)
        first = find_room(arena, blocks, times);
    /* What is kept is in the way. */
    while (first == NONE && blocks != NONE && arena->kept_count) {
        uint32_t old = take_kept(arena, 0);

        pthread_mutex_unlock(&arena->lock);
        discard_extent(arena, old);
        pthread_mutex_lock(&arena->lock);
        first = find_room(arena, blocks, times);
    }
    if (first == NONE) {
        arena->counters.refused++;
    } else {
        arena->counters.reserved += arena->extents[first].blocks * arena->block_size;
        arena->counters.objects++;
        arena->counters.allocated++;
        count_used(arena, arena->extents[first].used);
    }
    pthread_mutex_unlock(&arena->lock);
    if (first == NONE)
        return NULL;
    object = address_of(arena, first);
    if (hold_limit(arena)) {
        pa_release(arena, object);
        return NULL;
    }
    if (clears)
        memset(object, 0, nbytes);
    return object;
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
    arena->blocks = (uint32_t)(memory->length / memory->block_size);
    arena->extents = mmap(NULL, extents_bytes(arena), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena->extents == MAP_FAILED) {
        free(arena);
        return NULL;
    }
    /* A record is 24 bytes, and the next may be far away. */
    madvise(arena->extents, extents_bytes(arena), MADV_NOHUGEPAGE);
    pthread_mutex_init(&arena->lock, NULL);
    for (unsigned i = 0; i < CLASSES; i++)
        arena->head[i] = NONE;
    set_length(arena, 0, arena->blocks);
    list(arena, 0);
    return arena;
}

void pa_free_arena(struct pa_arena *arena)
{
    munmap(arena->extents, extents_bytes(arena));
    pthread_mutex_destroy(&arena->lock);
    free(arena);
}

int pa_has(const struct pa_arena *arena, const void *object)
{
    return (uint64_t)(uintptr_t)object - arena->base < arena->memory.length;
}

void *pa_allocate(struct pa_arena *arena, uint64_t nbytes, int zeros)
{
    return allocate(arena, nbytes, 2, zeros);
}

/* Without the lock, which another thread may have had when this process was forked. Nobody else
 * changes it. */
uint64_t pa_room(struct pa_arena *arena, const void *object)
{
    return arena->extents[number_of(arena, object)].used * arena->block_size;
}

/* Make an extent longer by what is free behind it. Wants the lock. */
static void extend(struct pa_arena *arena, uint32_t first, uint32_t wanted)
{
    struct extent *extent = &arena->extents[first];
    uint32_t next = first + extent->blocks, lacking = wanted - extent->blocks;

    if (!is_free(arena, next) || arena->extents[next].blocks < lacking)
        return;
    unlist(arena, next);
    if (arena->extents[next].blocks > lacking) {
        split(arena, next, lacking);
        list(arena, next + lacking);
    }
    set_length(arena, first, wanted);
    arena->counters.reserved += lacking * arena->block_size;
}

/* 1: it has so many blocks now, where it is. -1: it cannot have them. */
static int resize_here(struct pa_arena *arena, uint32_t first, uint32_t wanted)
{
    struct extent *extent = &arena->extents[first];
    uint32_t used, done;

    pthread_mutex_lock(&arena->lock);
    used = extent->used;
    if (wanted > extent->blocks)
        extend(arena, first, wanted);
    done = wanted <= extent->blocks;
    pthread_mutex_unlock(&arena->lock);
    /* One that cannot be made smaller stays as it is: what is behind it has to be zeros. */
    if (!done || wanted == used || (wanted < used && discard(arena, first + wanted, used - wanted)))
        return (int)done;
    pthread_mutex_lock(&arena->lock);
    extent->used = wanted;
    count_used(arena, (int64_t)wanted - used);
    pthread_mutex_unlock(&arena->lock);
    if (wanted > used && hold_limit(arena)) {
        pthread_mutex_lock(&arena->lock);
        extent->used = used;
        count_used(arena, (int64_t)used - wanted);
        pthread_mutex_unlock(&arena->lock);
        return -1;
    }
    return 1;
}

void *pa_resize(struct pa_arena *arena, void *object, uint64_t nbytes)
{
    uint32_t first = number_of(arena, object), wanted = blocks_of(arena, nbytes);
    uint64_t room = pa_room(arena, object);
    void *moved;

    int done = wanted == NONE ? 0 : resize_here(arena, first, wanted);

    if (done)
        return done > 0 ? object : NULL;
    moved = allocate(arena, nbytes, 8, 0);
    if (!moved)
        return NULL;
    memcpy(moved, object, room < nbytes ? room : nbytes);
    pthread_mutex_lock(&arena->lock);
    arena->counters.moved += room;
    pthread_mutex_unlock(&arena->lock);
    pa_release(arena, object);
    return moved;
}

void pa_release(struct pa_arena *arena, void *object)
{
    uint32_t first = number_of(arena, object);
    struct extent *extent = &arena->extents[first];
    int kept;

    pthread_mutex_lock(&arena->lock);
    count_used(arena, -(int64_t)extent->used);
    arena->counters.reserved -= extent->blocks * arena->block_size;
    arena->counters.objects--;
    kept = keep(arena, first);
    pthread_mutex_unlock(&arena->lock);
    if (!kept)
        discard_extent(arena, first);
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
    for (uint32_t at = 0; at < arena->blocks && is_plain(arena); at += arena->extents[at].blocks)
        if (arena->extents[at].state == USED || arena->extents[at].state == KEPT)
            bytes += there(arena, at);
    pthread_mutex_unlock(&arena->lock);
    return bytes;
}

/* Wants the lock. */
static uint32_t largest(const struct pa_arena *arena)
{
    uint32_t most = 0;

    for (unsigned class = CLASSES; class-- && !most;)
        for (uint32_t at = arena->head[class]; at != NONE; at = arena->extents[at].next)
            if (arena->extents[at].blocks > most)
                most = arena->extents[at].blocks;
    return most;
}

void pa_counters(struct pa_arena *arena, struct pa_counters *counters)
{
    pthread_mutex_lock(&arena->lock);
    *counters = arena->counters;
    counters->largest = largest(arena) * arena->block_size;
    pthread_mutex_unlock(&arena->lock);
}

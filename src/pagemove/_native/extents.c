#define _GNU_SOURCE
#include "extents.h"

#include <errno.h>
#include <sys/mman.h>

/* Free extents are listed by size: four classes between powers of two, so the first of any higher
 * class is large enough, and at most a quarter larger than need be. This many of one class are
 * looked at. */
enum { LOOKED_AT = 64 };

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

void pa_put_back(struct pa_arena *arena, uint32_t first)
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

uint32_t pa_take(struct pa_arena *arena, uint32_t blocks, uint32_t used)
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

uint32_t pa_cut_head(struct pa_arena *arena, uint32_t first, uint32_t blocks)
{
    uint32_t rest = first + blocks;

    if (!blocks)
        return first;
    split(arena, first, blocks);
    arena->extents[rest].state = USED;
    arena->extents[rest].used = arena->extents[first].used;
    pa_put_back(arena, first);
    return rest;
}

void pa_extend(struct pa_arena *arena, uint32_t first, uint32_t wanted)
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

uint32_t pa_largest(const struct pa_arena *arena)
{
    uint32_t most = 0;

    for (unsigned class = CLASSES; class-- && !most;)
        for (uint32_t at = arena->head[class]; at != NONE; at = arena->extents[at].next)
            if (arena->extents[at].blocks > most)
                most = arena->extents[at].blocks;
    return most;
}

int pa_begin_extents(struct pa_arena *arena)
{
    arena->extents = mmap(NULL, extents_bytes(arena), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena->extents == MAP_FAILED)
        return -ENOMEM;
    /* A record is 24 bytes, and the next may be far away. */
    madvise(arena->extents, extents_bytes(arena), MADV_NOHUGEPAGE);
    for (unsigned i = 0; i < CLASSES; i++)
        arena->head[i] = NONE;
    set_length(arena, 0, arena->blocks);
    list(arena, 0);
    return 0;
}

void pa_end_extents(struct pa_arena *arena)
{
    munmap(arena->extents, extents_bytes(arena));
}

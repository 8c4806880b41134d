#define _GNU_SOURCE
#include "pager/mechanisms/slabs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "uapi.h"

/* LEAST: bytes from class to class. With smaller steps slabs that are never full would take more
 * than they save. */
enum { CLASSES = 64, LEAST = 256, SLABS = 64, NONE = -1, ARENA = 4 << 20 };

/* Slabs that follow each other in the address space. Of one that is blank there are no pages. */
struct arena {
    char *base;
    unsigned class;
    uint64_t blank;         /* a bit for each slab */
    int32_t next, previous; /* of those of the class that have a blank one; of free arenas */
    uint64_t used[SLABS];   /* a bit for each object */
    uint8_t listed[SLABS];  /* whether it is in the list of those with free places */
    int64_t after[SLABS], before[SLABS]; /* in that list: arena * SLABS + slab */
    uint32_t owners[];                   /* slab * objects + object */
};

struct class {
    size_t slab_size, object_size;
    uint64_t slabs;  /* a bit for each of an arena */
    int64_t partial; /* slabs with free places */
    int32_t roomy;   /* arenas with blank slabs */
    uint64_t free;   /* free places of slabs that are not blank */
    uint64_t used;   /* objects */
};

struct pg_slabs {
    size_t page, unit;
    unsigned objects; /* of a slab */
    size_t largest;
    int dumped;
    pg_moved *moved;
    void *context;
    uint64_t bytes;
    struct arena **arenas;
    int32_t arena_count, arena_room, unused; /* unused: a chain of numbers without an arena */
    struct class classes[CLASSES + 1];
};

struct pg_slabs *pg_slabs_new(size_t block_size, int dumped, pg_moved *moved, void *context)
{
    struct pg_slabs *slabs = calloc(1, sizeof *slabs);

    if (!slabs)
        return NULL;
    slabs->page = (size_t)sysconf(_SC_PAGESIZE);
    slabs->unit = block_size / CLASSES < LEAST ? LEAST : block_size / CLASSES;
    slabs->objects = slabs->unit < slabs->page ? (unsigned)(slabs->page / slabs->unit) : 1;
    slabs->largest = (block_size + slabs->unit - 1) / slabs->unit * slabs->unit * slabs->objects;
    slabs->dumped = dumped;
    slabs->moved = moved;
    slabs->context = context;
    for (unsigned i = 1; i <= block_size / slabs->unit; i++) {
        size_t size = i * slabs->unit * slabs->objects, count = ARENA / size;
        slabs->classes[i] = (struct class){.slab_size = size,
                                           .object_size = i * slabs->unit,
                                           .slabs = count < 2        ? 1
                                                    : count >= SLABS ? UINT64_MAX
                                                                     : (UINT64_C(1) << count) - 1,
                                           .partial = NONE,
                                           .roomy = NONE};
    }
    return slabs;
}

static size_t arena_length(const struct class *class)
{
    return (size_t)__builtin_popcountll(class->slabs) * class->slab_size;
}

static void unmap(struct pg_slabs *slabs, struct arena *arena)
{
    munmap(arena->base, arena_length(&slabs->classes[arena->class]));
    free(arena);
}

void pg_slabs_free(struct pg_slabs *slabs)
{
    if (!slabs)
        return;
    for (int32_t i = 0; i < slabs->arena_count; i++)
        if (slabs->arenas[i])
            unmap(slabs, slabs->arenas[i]);
    free(slabs->arenas);
    free(slabs);
}

size_t pg_slabs_largest(const struct pg_slabs *slabs)
{
    return slabs->largest;
}

uint64_t pg_slabs_bytes(const struct pg_slabs *slabs)
{
    return slabs->bytes;
}

/* A place is arena, slab and object. */
static pg_place place_of(int64_t slab, unsigned object)
{
    return (uint64_t)slab * SLABS + object;
}

static struct arena *arena_of(const struct pg_slabs *slabs, int64_t slab)
{
    return slabs->arenas[slab / SLABS];
}

static char *object_at(const struct pg_slabs *slabs, int64_t slab, unsigned object)
{
    const struct arena *arena = arena_of(slabs, slab);
    const struct class *class = &slabs->classes[arena->class];

    return arena->base + (size_t)(slab % SLABS) * class->slab_size + object * class->object_size;
}

char *pg_slabs_at(const struct pg_slabs *slabs, pg_place place)
{
    return object_at(slabs, (int64_t)(place / SLABS), (unsigned)(place % SLABS));
}

void pg_slabs_own(struct pg_slabs *slabs, pg_place place, uint32_t owner)
{
    int64_t slab = (int64_t)(place / SLABS);

    arena_of(slabs, slab)
        ->owners[(size_t)(slab % SLABS) * slabs->objects + (unsigned)(place % SLABS)] = owner;
}

static unsigned count_used(const struct pg_slabs *slabs, int64_t slab)
{
    return (unsigned)__builtin_popcountll(arena_of(slabs, slab)->used[slab % SLABS]);
}

/* The list of slabs with free places. */

static void list(struct pg_slabs *slabs, struct class *class, int64_t slab)
{
    struct arena *arena = arena_of(slabs, slab);

    arena->listed[slab % SLABS] = 1;
    arena->before[slab % SLABS] = NONE;
    arena->after[slab % SLABS] = class->partial;
    if (class->partial != NONE)
        arena_of(slabs, class->partial)->before[class->partial % SLABS] = slab;
    class->partial = slab;
}

static void unlist(struct pg_slabs *slabs, struct class *class, int64_t slab)
{
    struct arena *arena = arena_of(slabs, slab);
    int64_t before = arena->before[slab % SLABS], after = arena->after[slab % SLABS];

    arena->listed[slab % SLABS] = 0;
    if (before == NONE)
        class->partial = after;
    else
        arena_of(slabs, before)->after[before % SLABS] = after;
    if (after != NONE)
        arena_of(slabs, after)->before[after % SLABS] = before;
}

/* The list of arenas with blank slabs. */

static void enter(struct pg_slabs *slabs, struct class *class, int32_t number)
{
    struct arena *arena = slabs->arenas[number];

    arena->previous = NONE;
    arena->next = class->roomy;
    if (class->roomy != NONE)
        slabs->arenas[class->roomy]->previous = number;
    class->roomy = number;
}

static void leave(struct pg_slabs *slabs, struct class *class, int32_t number)
{
    struct arena *arena = slabs->arenas[number];

    if (arena->previous == NONE)
        class->roomy = arena->next;
    else
        slabs->arenas[arena->previous]->next = arena->next;
    if (arena->next != NONE)
        slabs->arenas[arena->next]->previous = arena->previous;
}

/* A number that no arena has. -ENOMEM. */
static int32_t take_number(struct pg_slabs *slabs)
{
    struct arena **larger;
    int32_t room;

    for (int32_t i = slabs->unused; i < slabs->arena_count; i++)
        if (!slabs->arenas[i]) {
            slabs->unused = i + 1;
            return i;
        }
    slabs->unused = slabs->arena_count;
    if (slabs->arena_count == slabs->arena_room) {
        room = slabs->arena_room ? 2 * slabs->arena_room : 16;
        larger = realloc(slabs->arenas, (size_t)room * sizeof(*larger));
        if (!larger)
            return -ENOMEM;
        slabs->arenas = larger;
        slabs->arena_room = room;
    }
    slabs->arenas[slabs->arena_count] = NULL;
    slabs->unused = slabs->arena_count + 1;
    return slabs->arena_count++;
}

static void free_number(struct pg_slabs *slabs, int32_t number)
{
    slabs->arenas[number] = NULL;
    if (number < slabs->unused)
        slabs->unused = number;
}

static int add_arena(struct pg_slabs *slabs, unsigned which)
{
    struct class *class = &slabs->classes[which];
    size_t length = arena_length(class);
    struct arena *arena = calloc(1, sizeof *arena + SLABS * slabs->objects * sizeof(uint32_t));
    int32_t number = arena ? take_number(slabs) : -ENOMEM;
    /* After mlockall(MCL_FUTURE) memory that can be touched is filled at once: unlock it first. */
    char *base = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (number < 0 || base == MAP_FAILED || munlock(base, length) ||
        mprotect(base, length, PROT_READ | PROT_WRITE)) {
        if (base != MAP_FAILED)
            munmap(base, length);
        if (number >= 0)
            free_number(slabs, number);
        free(arena);
        return -ENOMEM;
    }
    madvise(base, length, MADV_NOHUGEPAGE); /* slabs come and go by pages */
    if (!slabs->dumped)
        madvise(base, length, MADV_DONTDUMP);
    arena->base = base;
    arena->class = which;
    arena->blank = class->slabs;
    slabs->arenas[number] = arena;
    enter(slabs, class, number);
    return 0;
}

/* Make a blank slab one with free places; there is one. */
static void open_slab(struct pg_slabs *slabs, struct class *class)
{
    int32_t number = class->roomy;
    struct arena *arena = slabs->arenas[number];
    unsigned slab = (unsigned)__builtin_ctzll(arena->blank);

    arena->blank &= arena->blank - 1;
    if (!arena->blank)
        leave(slabs, class, number);
    class->free += slabs->objects;
    slabs->bytes += class->slab_size;
    list(slabs, class, (int64_t)number * SLABS + slab);
}

/* Return the pages of a slab without objects to the kernel. */
static void close_slab(struct pg_slabs *slabs, struct class *class, int64_t slab)
{
    int32_t number = (int32_t)(slab / SLABS);
    struct arena *arena = slabs->arenas[number];

    unlist(slabs, class, slab);
    class->free -= slabs->objects;
    slabs->bytes -= class->slab_size;
    if (!arena->blank)
        enter(slabs, class, number);
    arena->blank |= UINT64_C(1) << slab % SLABS;
    if (arena->blank == class->slabs) {
        leave(slabs, class, number);
        unmap(slabs, arena);
        free_number(slabs, number);
    } else {
        madvise(object_at(slabs, slab, 0), class->slab_size, MADV_DONTNEED_LOCKED);
    }
}

/* A free place of a slab that has one, other than `but`. */
static pg_place take(struct pg_slabs *slabs, struct class *class, int64_t but, uint32_t owner)
{
    int64_t slab = class->partial;
    uint64_t all = slabs->objects == 64 ? UINT64_MAX : (UINT64_C(1) << slabs->objects) - 1;
    struct arena *arena;
    unsigned object;

    if (slab == but)
        slab = arena_of(slabs, slab)->after[slab % SLABS];
    arena = arena_of(slabs, slab);
    object = (unsigned)__builtin_ctzll(~arena->used[slab % SLABS]);
    arena->used[slab % SLABS] |= UINT64_C(1) << object;
    arena->owners[(size_t)(slab % SLABS) * slabs->objects + object] = owner;
    class->free--;
    class->used++;
    if (arena->used[slab % SLABS] == all)
        unlist(slabs, class, slab);
    return place_of(slab, object);
}

static int64_t emptiest(const struct pg_slabs *slabs, const struct class *class)
{
    int64_t best = class->partial;

    for (int64_t slab = best; slab != NONE; slab = arena_of(slabs, slab)->after[slab % SLABS])
        if (count_used(slabs, slab) < count_used(slabs, best))
            best = slab;
    return best;
}

/* Free places enough for a slab, and one more: have one empty. */
static void compact(struct pg_slabs *slabs, struct class *class)
{
    int64_t slab = emptiest(slabs, class);
    struct arena *arena = arena_of(slabs, slab);
    uint64_t *used = &arena->used[slab % SLABS];

    while (*used) {
        unsigned object = (unsigned)__builtin_ctzll(*used);
        uint32_t owner = arena->owners[(size_t)(slab % SLABS) * slabs->objects + object];
        pg_place place = take(slabs, class, slab, owner);
        memcpy(pg_slabs_at(slabs, place), object_at(slabs, slab, object), class->object_size);
        *used &= *used - 1;
        class->free++;
        class->used--;
        slabs->moved(slabs->context, owner, place);
    }
    close_slab(slabs, class, slab);
}

static struct class *class_at(struct pg_slabs *slabs, pg_place place)
{
    return &slabs->classes[arena_of(slabs, (int64_t)(place / SLABS))->class];
}

void pg_slabs_drop(struct pg_slabs *slabs, pg_place place)
{
    int64_t slab = (int64_t)(place / SLABS);
    struct arena *arena = arena_of(slabs, slab);
    struct class *class = class_at(slabs, place);

    arena->used[slab % SLABS] &= ~(UINT64_C(1) << place % SLABS);
    class->free++;
    class->used--;
    if (!arena->listed[slab % SLABS])
        list(slabs, class, slab);
    /* Of a size that no block has any more not even one slab is kept. */
    if (class->free > slabs->objects || !class->used)
        compact(slabs, class);
}

int pg_slabs_put(struct pg_slabs *slabs, uint32_t owner, const void *bytes, size_t length,
                 uint64_t most, int has_before, pg_place before, pg_place *place)
{
    unsigned which = (unsigned)((length + slabs->unit - 1) / slabs->unit);
    struct class *class = &slabs->classes[which];
    struct class *old = has_before ? class_at(slabs, before) : NULL;

    if (old == class) {
        *place = before;
    } else {
        if (class->partial == NONE) {
            uint64_t after = slabs->bytes + class->slab_size;
            if (old && (old->free + 1 > slabs->objects || old->used == 1))
                after -= old->slab_size;
            if (after > most)
                return -ENOSPC;
            if (class->roomy == NONE && add_arena(slabs, which))
                return -ENOMEM;
            open_slab(slabs, class);
        }
        if (old)
            pg_slabs_drop(slabs, before);
        *place = take(slabs, class, NONE, owner);
    }
    memcpy(pg_slabs_at(slabs, *place), bytes, length);
    return 0;
}

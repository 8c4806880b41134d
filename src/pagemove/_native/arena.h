/* Memory for objects, out of one region of paged memory: extents of whole blocks.
 *
 * What is free is discarded, so an arena that is full of holes takes address space and no memory.
 * Only while the kernel alone serves the region some extents that were freed last are kept as they
 * are, for the next of their size: nothing of them can have left, or be pinned. All bookkeeping is
 * outside of the arena: nothing here touches a page of it but to copy an object whose pages cannot
 * move, or to clear one that was kept. Never includes Python.h. Any thread may call these at any
 * time, but for a child made by fork that does not have the region: it may call pa_has and pa_room.
 */
#ifndef PAGEMOVE_ARENA_H
#define PAGEMOVE_ARENA_H

#include <stddef.h>
#include <stdint.h>

/* Have whole blocks be zeros again: 0 or -errno, and then they are not to be used any more. */
typedef int (*pa_discard)(void *region, uint64_t offset, uint64_t length);

/* There is more than the limit now: have the pager serve the region. 0, or -errno: it cannot. */
typedef int (*pa_engage)(void *region);

/* Have whole blocks become others, which are zeros. How many of them, from the first on; the rest
 * is where it was. Or -errno: all of them. */
typedef int (*pa_shift)(void *region, uint64_t to, uint64_t from, uint64_t length);

/* Whether there is no room for so many bytes more, neither in memory nor where evicted blocks go.
 * Zeros that nobody stores to take none. */
typedef int (*pa_full)(void *region, uint64_t nbytes, int zeros);

/* The region: [base, base + length), all zeros now. */
struct pa_memory {
    uint64_t base, length, block_size;
    uint64_t limit;   /* bytes that may be resident; 0: not known */
    const int *plain; /* whether the kernel alone serves it, which it does at first if at all */
    const uint64_t *carried_in; /* the pm_generation() of a forked child that has it too, or 0 */
    uint64_t *owned;            /* a bit for each block: whether an object has it */
    const int *lost; /* whether it is not there any more: the program has closed its descriptors */
    pa_discard discard;
    pa_engage engage;
    pa_shift shift;
    pa_full full;
    void *region;
};

struct pa_counters {
    uint64_t used, peak;       /* bytes in use, now and at most */
    uint64_t kept;             /* of what was freed */
    uint64_t reserved, free;   /* bytes of extents, room to grow included; of what is left */
    uint64_t largest;          /* bytes of the largest free extent */
    uint64_t objects;          /* in use */
    uint64_t allocated, moved; /* calls that returned an object; bytes copied as one grew */
    uint64_t refused;          /* calls that did not: there was no extent, or no room */
    uint64_t full;             /* of these, those without room */
    uint64_t used_then;        /* bytes in use when one was refused last; */
    uint64_t largest_then;     /* of the largest free extent at that time */
    uint64_t lost;             /* bytes that could not be discarded, and are never used again */
    uint64_t unserved;         /* times that the pager could not serve the region when it had to, */
    int unserved_error;        /* and the errno of the last */
};

struct pa_arena;

/* NULL: no memory. */
struct pa_arena *pa_new(const struct pa_memory *memory);
void pa_free_arena(struct pa_arena *arena);

int pa_has(const struct pa_arena *arena, const void *object);

/* Whether this is a forked child that has the region, and may call all of these. */
int pa_is_carried(const struct pa_arena *arena);

/* Whether a touch of its objects raises SIGSEGV, and nothing is to be allocated in it. */
int pa_is_lost(const struct pa_arena *arena);

/* At a multiple of the block size, and with `zeros` zeros. NULL: there is no extent. */
void *pa_allocate(struct pa_arena *arena, uint64_t nbytes, int zeros);

/* As realloc(3) of an object of the arena: what it grows by may be anything. */
void *pa_resize(struct pa_arena *arena, void *object, uint64_t nbytes);

/* Bytes from the object's first that belong to it. */
uint64_t pa_room(struct pa_arena *arena, const void *object);

void pa_release(struct pa_arena *arena, void *object);

/* Have another limit from now on. 0, or -errno: there is more than that, and it cannot be evicted.
 */
int pa_set_limit(struct pa_arena *arena, uint64_t limit);

/* Bytes of it that are resident while the kernel alone serves it; 0 after that. */
uint64_t pa_plain_bytes(struct pa_arena *arena);

void pa_counters(struct pa_arena *arena, struct pa_counters *counters);

#endif

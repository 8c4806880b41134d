/* Memory for objects, out of one region of paged memory: extents of whole blocks.
 *
 * What is free is discarded, so an arena that is full of holes takes address space and no memory,
 * and every extent that is handed out is zeros. All bookkeeping is outside of the arena: nothing
 * here touches a page of it but to copy an object that moves. Never includes Python.h. Any thread
 * may call these at any time; in a child made by fork the arena is not there. */
#ifndef PAGEMOVE_ARENA_H
#define PAGEMOVE_ARENA_H

#include <stddef.h>
#include <stdint.h>

/* Have whole blocks be zeros again: 0 or -errno, and then they are not to be used any more. */
typedef int (*pa_discard)(void *region, uint64_t offset, uint64_t length);

struct pa_counters {
    uint64_t used, peak;       /* bytes in use, now and at most */
    uint64_t reserved, free;   /* bytes of extents, room to grow included; of what is left */
    uint64_t largest;          /* bytes of the largest free extent */
    uint64_t objects;          /* in use */
    uint64_t allocated, moved; /* calls that returned an object; bytes copied as one grew */
    uint64_t refused;          /* calls that did not: there was no extent */
    uint64_t lost;             /* bytes that could not be discarded, and are never used again */
};

struct pa_arena;

/* Over [base, base + length), all zeros now. NULL: no memory. */
struct pa_arena *pa_new(uint64_t base, uint64_t length, uint64_t block_size, pa_discard discard,
                        void *region);
void pa_free_arena(struct pa_arena *arena);

int pa_has(const struct pa_arena *arena, const void *object);

/* Zeros, at a multiple of the block size. NULL: there is no extent. */
void *pa_allocate(struct pa_arena *arena, uint64_t nbytes);

/* As realloc(3) of an object of the arena. */
void *pa_resize(struct pa_arena *arena, void *object, uint64_t nbytes);

/* Bytes from the object's first that belong to it. */
uint64_t pa_room(struct pa_arena *arena, const void *object);

void pa_release(struct pa_arena *arena, void *object);

void pa_counters(struct pa_arena *arena, struct pa_counters *counters);

#endif

/* The extents of an arena, of whole blocks, and the lists of those that are free. Included by
 * arena.c, supply.c and extents.c alone. Whoever calls these has the arena's lock, or the arena
 * alone. */
#ifndef PAGEMOVE_EXTENTS_H
#define PAGEMOVE_EXTENTS_H

#include <pthread.h>
#include <stdint.h>

#include "arena.h"

enum { CLASSES = 128 };

/* How many extents are kept. */
enum { KEPT_AT_MOST = 512 };

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
    int huge;    /* pages may be: not where eviction loops forever on one that cannot be split */
    int movable; /* whether huge pages are safe to move that the kernel has put there */
    uint64_t base, block_size;
    uint32_t blocks;
    pthread_mutex_t lock;
    uint32_t kept[KEPT_AT_MOST], kept_count; /* the oldest first */
    struct extent *extents;
    uint64_t classes[CLASSES / 64]; /* a bit for each that has an extent */
    uint32_t head[CLASSES];
    struct pa_counters counters;
    struct pa_arena *next; /* of all */
};

/* One free extent of all blocks. 0 or -ENOMEM. */
int pa_begin_extents(struct pa_arena *arena);
void pa_end_extents(struct pa_arena *arena);

/* A free extent of so many blocks, of which so many are used; NONE if there is none. */
uint32_t pa_take(struct pa_arena *arena, uint32_t blocks, uint32_t used);

/* Have the first blocks of an extent that is in use be free; the others are an extent in use. */
uint32_t pa_cut_head(struct pa_arena *arena, uint32_t first, uint32_t blocks);

/* Have an extent that is on no list be free, together with those beside it. */
void pa_put_back(struct pa_arena *arena, uint32_t first);

/* Make an extent longer by what is free behind it, if that is enough. */
void pa_extend(struct pa_arena *arena, uint32_t first, uint32_t wanted);

/* Blocks of the largest free extent. */
uint32_t pa_largest(const struct pa_arena *arena);

#endif

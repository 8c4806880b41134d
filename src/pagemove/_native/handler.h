/* The data handler of NEP 49 that puts large arrays into an arena, and leaves small ones to whoever
 * had them before. Its layout is NumPy's, of version 1 of the structure, which every NumPy since
 * 1.22 has; the headers are not needed, which the stable ABI of CPython has no room for. */
#ifndef PAGEMOVE_HANDLER_H
#define PAGEMOVE_HANDLER_H

#include <stddef.h>
#include <stdint.h>

#include "arena.h"

struct pa_allocator {
    void *ctx;
    void *(*malloc)(void *ctx, size_t nbytes);
    void *(*calloc)(void *ctx, size_t count, size_t nbytes);
    void *(*realloc)(void *ctx, void *object, size_t nbytes);
    void (*free)(void *ctx, void *object, size_t nbytes);
};

/* What a capsule "mem_handler" has. */
struct pa_handler {
    char name[127];
    uint8_t version;
    struct pa_allocator allocator;
};

/* One use of an arena. */
struct pa_use {
    struct pa_handler handler;
    struct pa_arena *arena;
    struct pa_allocator below; /* for what is smaller than `least` */
    uint64_t least;
    uint64_t born; /* pm_generation() then: in a child made by fork it is another */
    void *arena_object, *below_object; /* of Python, kept alive */
};

void pa_fill_handler(struct pa_use *use);

/* Have NumPy's own handler do this from now on, in every thread. What it has allocated before it
 * frees as before. Never undone: objects of the arena may be anywhere. */
void pa_replace(struct pa_handler *own, struct pa_use *use);

#endif

#include "handler.h"

#include <stdio.h>
#include <string.h>

#include "generation.h"

/* A child made by fork may have no arena, only what was in it while the kernel alone served it. */
static int is_here(const struct pa_use *use)
{
    return pm_generation_known() == use->born || pa_is_carried(use->arena);
}

static int is_ours(const struct pa_use *use, uint64_t nbytes)
{
    return nbytes >= use->least && is_here(use) && !pa_is_lost(use->arena);
}

static void *use_malloc(void *ctx, size_t nbytes)
{
    struct pa_use *use = ctx;

    return is_ours(use, nbytes) ? pa_allocate(use->arena, nbytes, 0)
                                : use->below.malloc(use->below.ctx, nbytes);
}

static void *use_calloc(void *ctx, size_t count, size_t nbytes)
{
    struct pa_use *use = ctx;
    size_t total;

    if (__builtin_mul_overflow(count, nbytes, &total))
        return NULL;
    return is_ours(use, total) ? pa_allocate(use->arena, total, 1)
                               : use->below.calloc(use->below.ctx, count, nbytes);
}

static void use_free(void *ctx, void *object, size_t nbytes)
{
    struct pa_use *use = ctx;

    if (!pa_has(use->arena, object))
        use->below.free(use->below.ctx, object, nbytes);
    else if (is_here(use))
        pa_release(use->arena, object);
}

/* From ordinary memory into the arena, when it becomes large enough: its length is known to the
 * allocator below alone, so that makes it larger first. */
static void *move_in(struct pa_use *use, void *object, size_t nbytes)
{
    void *grown = use->below.realloc(use->below.ctx, object, nbytes), *moved;

    if (!grown)
        return NULL;
    moved = pa_allocate(use->arena, nbytes, 0);
    if (!moved)
        return grown;
    memcpy(moved, grown, nbytes);
    use->below.free(use->below.ctx, grown, nbytes);
    return moved;
}

/* Out of the parent's arena. */
static void *move_out(struct pa_use *use, const void *object, size_t nbytes)
{
    void *moved = use->below.malloc(use->below.ctx, nbytes);
    uint64_t room = pa_room(use->arena, object);

    if (moved)
        memcpy(moved, object, room < nbytes ? room : nbytes);
    return moved;
}

static void *use_realloc(void *ctx, void *object, size_t nbytes)
{
    struct pa_use *use = ctx;

    if (!object)
        return use_malloc(ctx, nbytes);
    if (!pa_has(use->arena, object))
        return is_ours(use, nbytes) ? move_in(use, object, nbytes)
                                    : use->below.realloc(use->below.ctx, object, nbytes);
    return is_here(use) ? pa_resize(use->arena, object, nbytes) : move_out(use, object, nbytes);
}

void pa_fill_handler(struct pa_use *use)
{
    struct pa_handler *handler = &use->handler;

    snprintf(handler->name, sizeof handler->name, "pagemove");
    handler->version = 1;
    handler->allocator = (struct pa_allocator){use, use_malloc, use_calloc, use_realloc, use_free};
}

void pa_replace(struct pa_handler *own, struct pa_use *use)
{
    use->below = own->allocator;
    own->allocator = use->handler.allocator;
}

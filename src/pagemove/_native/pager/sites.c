/* Where the regions of an engine are: which one a fault is in. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/shared.h"

/* The first place that ends behind an address. */
static uint32_t place_of(const struct pg_engine *engine, uint64_t address)
{
    uint32_t low = 0, high = engine->place_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (engine->places[middle].end > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

struct pg_region *pg_engine_find(const struct pg_engine *engine, uint64_t address)
{
    uint32_t at = place_of(engine, address);

    return at < engine->place_count && engine->places[at].base <= address
               ? engine->places[at].region
               : NULL;
}

int pg_engine_place(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;
    uint32_t at, room;
    int error = 0;

    pthread_mutex_lock(&engine->places_lock);
    if (engine->place_count == engine->place_room) {
        struct pg_site *larger;
        room = engine->place_room ? 2 * engine->place_room : 16;
        larger = realloc(engine->places, room * sizeof *larger);
        if (larger) {
            engine->places = larger;
            engine->place_room = room;
        } else {
            error = -ENOMEM;
        }
    }
    if (!error) {
        at = place_of(engine, region->base);
        memmove(&engine->places[at + 1], &engine->places[at],
                (engine->place_count - at) * sizeof *engine->places);
        engine->places[at] = (struct pg_site){region->base, region->base + region->length, region};
        engine->place_count++;
    }
    pthread_mutex_unlock(&engine->places_lock);
    return error;
}

static void disarm(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;
    struct pg_region **at = &engine->armed;

    pthread_mutex_lock(&engine->lock);
    while (*at && *at != region)
        at = &(*at)->share.armed_next;
    if (*at) {
        *at = region->share.armed_next;
        engine->armed_count--;
        if (!*at)
            engine->armed_last = at;
    }
    pthread_mutex_unlock(&engine->lock);
}

void pg_engine_displace(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;
    uint32_t at;

    pthread_mutex_lock(&engine->places_lock);
    at = place_of(engine, region->base);
    if (region->base && at < engine->place_count && engine->places[at].region == region) {
        engine->place_count--;
        memmove(&engine->places[at], &engine->places[at + 1],
                (engine->place_count - at) * sizeof *engine->places);
    }
    disarm(region);
    pthread_mutex_unlock(&engine->places_lock);
}

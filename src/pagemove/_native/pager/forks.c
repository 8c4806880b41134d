/* The regions of this process, none of which a forked child has. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "pager/carried.h"
#include "pager/heirs.h"
#include "pager/inherited.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/spilled.h"
#include "pager/mechanisms/trace.h"
#include "pager/mechanisms/voice.h"
#include "pager/memories.h"
#include "pager/shared.h"

/* All regions of this process. A forked child closes the one descriptor of each that it has. */
static pthread_mutex_t regions_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pg_region *regions;

static void before_fork(void)
{
    pthread_mutex_lock(&regions_lock);
    for (struct pg_region *region = regions; region; region = region->next)
        pg_carry(region);
    pg_heirs_before_fork();
}

static void after_fork(void)
{
    for (struct pg_region *region = regions; region; region = region->next) {
        region->forked |= region->plain;
        pg_carry_back(region);
    }
    pg_heirs_after_fork();
    pthread_mutex_unlock(&regions_lock);
}

/* What the child has of the parent's regions, but for those that are carried, in their order. */
static struct pg_region *take_leave(void)
{
    struct pg_region *carried = NULL, **last = &carried;

    for (struct pg_region *region = regions; region; region = region->next) {
        if (region->engine)
            pg_engine_close_sentinel(region->engine);
        else
            pm_close(region->sentinel, region->sentinel_identity);
        if (pg_is_carried(region)) {
            *last = region;
            last = &region->next;
            continue;
        }
        if (region->carried)
            pg_spills_take_back(pg_compressed_files(region->store.compressed));
        region->inherited = 1;
        /* What is ordinary memory the child has. */
        if (!region->plain)
            pg_mark_grave(region->stone, region->base, region->length, region->store.label,
                          region->mode, region->remedy, 0);
        pg_inherit(region);
        region->stone = NULL;
    }
    *last = NULL;
    regions = NULL;
    return carried;
}

static void in_child(void)
{
    struct pg_region *carried, *next;

    pg_graves_forked();
    pg_heirs_forked();
    pg_clock_forked();
    pg_trace_forked();
    pg_ending_forked();
    carried = take_leave();
    pg_memories_forked();
    pg_engine_forked();
    pg_watch_graves();
    pg_voice_forget();
    pthread_mutex_unlock(&regions_lock);
    for (; carried; carried = next) {
        next = carried->next;
        pg_carry_on(carried);
    }
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, in_child);
}

void pg_hold_forks(void)
{
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&regions_lock);
}

void pg_release_forks(void)
{
    pthread_mutex_unlock(&regions_lock);
}

void pg_for_all_regions(void (*function)(struct pg_region *region, void *argument), void *argument)
{
    pthread_mutex_lock(&regions_lock);
    for (struct pg_region *region = regions; region; region = region->next)
        function(region, argument);
    pthread_mutex_unlock(&regions_lock);
}

/* A pipe for a region that has a table of its own. Who opens an inherited one has a table apart
 * from the program's, which has no end of it. 0 or -errno. */
static int make_sentinel(struct pg_region *region)
{
    int ends[2] = {-1, -1};

    if (region->origin)
        ends[0] = eventfd(0, EFD_CLOEXEC);
    if (region->origin ? ends[0] < 0 : pipe2(ends, O_CLOEXEC))
        return -errno;
    region->watched = pm_keep(ends[0]);
    region->sentinel = region->origin ? -1 : pm_keep(ends[1]);
    region->sentinel_identity = pm_identify(region->sentinel);
    return 0;
}

int pg_enter(struct pg_region *region)
{
    struct pg_stone *stone = pg_new_stone();
    int error;

    /* A child that has no word for it would have other memory there. */
    if (!stone)
        return -ENOMEM;
    pg_hold_forks();
    error = pg_voice_enter();
    if (!error) {
        error = region->shares ? pg_engine_enter(region) : make_sentinel(region);
        if (error)
            pg_voice_leave();
    }
    if (error) {
        pthread_mutex_unlock(&regions_lock);
        pg_free_stone(stone);
        return error;
    }
    region->stone = stone;
    region->next = regions;
    region->link = &regions;
    if (regions)
        regions->link = &region->next;
    regions = region;
    pthread_mutex_unlock(&regions_lock);
    if (region->engine)
        return 0;
    if (region->watched < 0)
        return region->watched;
    return region->sentinel < 0 && !region->origin ? region->sentinel : 0;
}

static struct pg_engine *leave(struct pg_region *region, int silent)
{
    struct pg_engine *last = NULL;

    pthread_mutex_lock(&regions_lock);
    if (region->link) {
        *region->link = region->next;
        if (region->next)
            region->next->link = region->link;
        region->link = NULL;
        if (region->engine)
            last = pg_engine_leave(region);
        else
            pm_close(region->sentinel, region->sentinel_identity);
        pg_free_stone(region->stone);
        region->stone = NULL;
        if (silent)
            pg_voice_leave();
    }
    pthread_mutex_unlock(&regions_lock);
    return last;
}

void pg_leave(struct pg_region *region)
{
    pg_engine_end(leave(region, 1));
}

struct pg_engine *pg_abandon(struct pg_region *region)
{
    return leave(region, 0);
}

#include "pager/engine/lease.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/interruption.h"

/* ns that others get to return what a region cannot do without, where its store gets less. */
#define SHORTEST_WAIT UINT64_C(2000000000)

static int is_leased(const struct pg_region *region)
{
    return region->member.budget != NULL;
}

static struct pg_region *region_of(struct pg_member *member)
{
    return (struct pg_region *)((char *)member - offsetof(struct pg_region, member));
}

static int ask_to_shrink(struct pg_member *member)
{
    return region_of(member)->above->post_shrink(region_of(member));
}

static void pick_up(struct pg_region *region, uint64_t bytes)
{
    if (!bytes)
        return;
    region->frames.limit += (uint32_t)(bytes / region->block_size);
    pg_share_out(region);
}

static uint64_t patience(const struct pg_region *region)
{
    uint64_t wait = region->timeout > SHORTEST_WAIT ? region->timeout : SHORTEST_WAIT;

    return pg_later(pg_now(), wait);
}

static int is_given_up(void *flag)
{
    return __atomic_load_n((const int *)flag, __ATOMIC_ACQUIRE);
}

static int is_called_off(void *region)
{
    return pg_is_called_off() ||
           __atomic_load_n(&((struct pg_region *)region)->stop, __ATOMIC_ACQUIRE);
}

/* Frames: more than all blocks and all that is on its way. Any may be had if the budget grows. */
static uint64_t most_of(const struct pg_region *region)
{
    uint64_t most = (uint64_t)region->nblocks + UINT16_MAX;

    return most < UINT32_MAX ? most : UINT32_MAX - 1;
}

static void explain(const struct pg_region *region, int error, char text[PG_TEXT])
{
    struct pg_budget *budget = region->member.budget;
    struct pg_budget_counters counters;
    char members[PG_TEXT / 2];

    pg_budget_counters(budget, &counters);
    pg_budget_describe(budget, members, sizeof members);
    snprintf(text, PG_TEXT,
             "the budget of %llu KiB has no room for another region, which needs at least %llu "
             "KiB%s; what others need at least: %s; raise it with Budget.resize, close regions, or "
             "use smaller blocks",
             (unsigned long long)counters.total / 1024,
             (unsigned long long)(pg_frames_least(region) * region->block_size) / 1024,
             error == -PG_NO_ROOM ? "" : ", and the others have not returned so much in time",
             *members ? members : "nothing");
}

int pg_lease_start(struct pg_region *region, int *given_up, char text[PG_TEXT])
{
    struct pg_member *member = &region->member;
    uint64_t floor = pg_frames_least(region) * region->block_size;
    int error;

    *member = (struct pg_member){.label = region->store.label,
                                 .frame = region->block_size,
                                 .most = most_of(region) * region->block_size,
                                 .frames = &region->frames.total,
                                 .shrink = ask_to_shrink};
    pg_budget_enter(region->budget, member);
    error = pg_budget_claim(member, floor, patience(region), is_given_up, given_up);
    if (!error)
        region->frames.limit = (uint32_t)(pg_budget_pick_up(member) / region->block_size);
    else
        pg_budget_set_floor(member, 0);
    if (error && error != -PG_INTERRUPTED)
        explain(region, error, text);
    return error && error != -PG_INTERRUPTED ? -ENOMEM : error;
}

uint64_t pg_share_id(const struct pg_region *region)
{
    return region->member.id;
}

void pg_lease_end(struct pg_region *region)
{
    if (is_leased(region))
        pg_budget_leave(&region->member);
}

int pg_lease_more(struct pg_region *region)
{
    if (!is_leased(region))
        return 0;
    pick_up(region, pg_budget_ask(&region->member));
    return pg_has_room(&region->frames);
}

int pg_lease_claim(struct pg_region *region, uint64_t frames)
{
    int error;

    if (!is_leased(region))
        return -PG_NO_ROOM;
    pthread_mutex_unlock(&region->lock);
    error = pg_budget_claim(&region->member, frames * region->block_size, patience(region),
                            is_called_off, region);
    pthread_mutex_lock(&region->lock);
    pick_up(region, pg_budget_pick_up(&region->member));
    if (error)
        pg_lease_note_floor(region);
    return error == -PG_NOT_NOW ? -PG_NO_ROOM : error;
}

void pg_lease_note_floor(struct pg_region *region)
{
    if (is_leased(region))
        pg_budget_set_floor(&region->member, pg_frames_least(region) * region->block_size);
}

uint64_t pg_lease_claimable(struct pg_region *region)
{
    return is_leased(region) ? pg_budget_claimable(&region->member) / region->block_size
                             : region->frames.limit;
}

uint64_t pg_lease_reach(struct pg_region *region)
{
    return is_leased(region) ? pg_budget_reach(&region->member) / region->block_size
                             : region->frames.limit;
}

/* Whether a frame was returned. Whoever lacks one keeps those that there are. Drops the lock. */
static int return_frame(struct pg_region *region)
{
    for (int write = 0; write < 2 && !pg_has_room(&region->frames) && !region->jobs.starving;
         write++)
        pg_empty_one(region, write);
    /* While the lock was dropped blocks may have been pinned, or the room been used. */
    if (region->jobs.starving || !pg_has_room(&region->frames) ||
        region->frames.limit <= pg_frames_least(region)) {
        pg_frame_available(region);
        return 0;
    }
    region->frames.limit--;
    pg_budget_return(&region->member);
    return 1;
}

void pg_do_shrink(struct pg_region *region)
{
    int going_on = 1;

    while (going_on && !pg_is_lost(region) && !__atomic_load_n(&region->stop, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&region->lock);
        for (unsigned i = 0; i < PG_BATCH && going_on; i++)
            going_on = pg_budget_wanted(&region->member) && return_frame(region);
        pg_share_out(region);
        pthread_mutex_unlock(&region->lock);
    }
    pg_budget_shrunk(&region->member);
}

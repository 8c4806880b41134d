#include "pager/mechanisms/budget.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/heat.h"
#include "pager/mechanisms/voice.h"
#include "pager/state/terms.h"

enum { MOST_NAMED = 4 };

/* ns between looks whether to go on waiting. */
#define SLICE UINT64_C(40000000)

struct pg_budget *pg_budget_new(uint64_t total)
{
    struct pg_budget *budget = calloc(1, sizeof *budget);
    pthread_condattr_t monotonic;

    if (!budget)
        return NULL;
    pthread_mutex_init(&budget->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&budget->returned, &monotonic);
    pthread_condattr_destroy(&monotonic);
    budget->total = total;
    budget->holders = 1;
    return budget;
}

struct pg_budget *pg_budget_hold(struct pg_budget *budget)
{
    __atomic_add_fetch(&budget->holders, 1, __ATOMIC_RELAXED);
    return budget;
}

void pg_budget_release(struct pg_budget *budget)
{
    if (__atomic_sub_fetch(&budget->holders, 1, __ATOMIC_ACQ_REL))
        return;
    pthread_cond_destroy(&budget->returned);
    pthread_mutex_destroy(&budget->lock);
    free(budget);
}

/* From here on the budget's lock is held. */

void pg_set_lease(struct pg_member *member, uint64_t lease, uint64_t granted, uint64_t floor)
{
    struct pg_budget *budget = member->budget;

    budget->leased -= pg_held(member);
    budget->claimed -= pg_lacking(member);
    member->lease = lease;
    member->granted = granted;
    member->floor = floor;
    budget->leased += pg_held(member);
    budget->claimed += pg_lacking(member);
}

/* What nobody has, and nobody waits for. */
static uint64_t unassigned(const struct pg_budget *budget)
{
    uint64_t taken = budget->leased + budget->claimed;

    return taken < budget->total ? budget->total - taken : 0;
}

static uint64_t sum_of_floors(const struct pg_budget *budget)
{
    uint64_t sum = 0;

    for (const struct pg_member *member = budget->members; member; member = member->next)
        sum += member->floor;
    return sum;
}

static uint64_t pick_up(struct pg_member *member)
{
    uint64_t bytes = member->granted - member->granted % member->frame;

    pg_set_lease(member, member->lease + bytes, member->granted - bytes, member->floor);
    member->budget->counters.grown += bytes;
    return bytes;
}

static void remove_heir(struct pg_budget *budget, const struct pg_member *heir)
{
    for (struct pg_member *member = budget->members; member; member = member->next)
        if (member->heir == heir)
            member->heir = NULL;
}

/* Nor is it held from here on. */

void pg_budget_enter(struct pg_budget *budget, struct pg_member *member)
{
    pthread_mutex_lock(&budget->lock);
    member->budget = budget;
    member->id = ++budget->ids;
    member->cooled = budget->clock;
    member->next = budget->members;
    member->link = &budget->members;
    if (budget->members)
        budget->members->link = &member->next;
    budget->members = member;
    pthread_mutex_unlock(&budget->lock);
}

void pg_budget_leave(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;

    pthread_mutex_lock(&budget->lock);
    budget->counters.returned += member->lease;
    pg_set_lease(member, 0, 0, 0);
    *member->link = member->next;
    if (member->next)
        member->next->link = member->link;
    remove_heir(budget, member);
    pthread_cond_broadcast(&budget->returned);
    pthread_mutex_unlock(&budget->lock);
}

uint64_t pg_budget_ask(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;
    uint64_t bytes = 0, room;

    pthread_mutex_lock(&budget->lock);
    pg_heat_of(member); /* lets time pass */
    room = unassigned(budget);
    if (member->lease < member->most && !member->asked) {
        if (member->granted < member->frame && room + member->granted >= member->frame) {
            bytes = pg_chunk(member) < room ? pg_chunk(member) : room;
            pg_set_lease(member, member->lease, member->granted + bytes, member->floor);
        } else if (member->granted < member->frame && budget->clock >= member->look_again) {
            member->look_again = budget->clock + pg_chunk(member);
            if (budget->leased > budget->total)
                pg_ask_all(budget, NULL);
            else
                pg_ask_coldest(member);
        }
        bytes = pick_up(member);
    }
    pthread_mutex_unlock(&budget->lock);
    return bytes;
}

uint64_t pg_budget_reach(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;
    uint64_t bytes;

    pthread_mutex_lock(&budget->lock);
    bytes = pg_held(member) + unassigned(budget);
    for (struct pg_member *other = budget->members; other; other = other->next)
        if (other != member && pg_can_be_asked(other) && !pg_heat_of(other))
            bytes += pg_spare(other);
    bytes = bytes < member->most ? bytes : member->most;
    pthread_mutex_unlock(&budget->lock);
    return bytes;
}

uint64_t pg_budget_claimable(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;
    uint64_t others, bytes;

    pthread_mutex_lock(&budget->lock);
    others = sum_of_floors(budget) - member->floor;
    bytes = others < budget->total ? budget->total - others : 0;
    bytes = bytes < member->most ? bytes : member->most;
    pthread_mutex_unlock(&budget->lock);
    return bytes;
}

uint64_t pg_budget_wanted(struct pg_member *member)
{
    uint64_t bytes;

    pthread_mutex_lock(&member->budget->lock);
    bytes = member->wanted;
    pthread_mutex_unlock(&member->budget->lock);
    return bytes;
}

void pg_budget_return(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;
    struct pg_member *heir;

    pthread_mutex_lock(&budget->lock);
    heir = member->heir;
    pg_set_lease(member, member->lease - member->frame, member->granted, member->floor);
    member->wanted -= member->wanted < member->frame ? member->wanted : member->frame;
    budget->counters.returned += member->frame;
    /* Who lacks what it cannot do without comes first, and so does a smaller total. */
    if (heir && budget->leased + budget->claimed + member->frame <= budget->total) {
        pg_set_lease(heir, heir->lease, heir->granted + member->frame, heir->floor);
        budget->counters.moved += member->frame;
    }
    pthread_cond_broadcast(&budget->returned);
    pthread_mutex_unlock(&budget->lock);
}

void pg_budget_shrunk(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;

    pthread_mutex_lock(&budget->lock);
    if (member->wanted) {
        budget->counters.refused++;
        member->unwilling_until = budget->clock + budget->total / 8;
    }
    member->asked = 0;
    member->wanted = 0;
    member->heir = NULL;
    pthread_cond_broadcast(&budget->returned);
    pthread_mutex_unlock(&budget->lock);
}

uint64_t pg_budget_pick_up(struct pg_member *member)
{
    uint64_t bytes;

    pthread_mutex_lock(&member->budget->lock);
    bytes = pick_up(member);
    pthread_mutex_unlock(&member->budget->lock);
    return bytes;
}

int pg_budget_claim(struct pg_member *member, uint64_t floor, uint64_t until,
                    int (*stop)(void *argument), void *argument)
{
    struct pg_budget *budget = member->budget;
    int error = 0;

    pthread_mutex_lock(&budget->lock);
    for (;;) {
        uint64_t free, needed, now = pg_now();
        /* Others of the member may have a claim too, and set it when theirs fails. */
        if (member->floor < floor)
            pg_set_lease(member, member->lease, member->granted, floor);
        free = budget->leased < budget->total ? budget->total - budget->leased : 0;
        needed = floor > pg_held(member) ? floor - pg_held(member) : 0;
        if (needed <= free) {
            pg_set_lease(member, member->lease, member->granted + needed, member->floor);
            break;
        }
        error = sum_of_floors(budget) > budget->total ? -PG_NO_ROOM
                : stop(argument)                      ? -PG_INTERRUPTED
                : now >= until                        ? -PG_NOT_NOW
                                                      : 0;
        if (error)
            break;
        pg_ask_all(budget, member);
        pg_wait_until(&budget->returned, &budget->lock, now + SLICE);
    }
    pthread_mutex_unlock(&budget->lock);
    return error;
}

void pg_budget_set_floor(struct pg_member *member, uint64_t floor)
{
    struct pg_budget *budget = member->budget;

    pthread_mutex_lock(&budget->lock);
    pg_set_lease(member, member->lease, member->granted, floor);
    pthread_cond_broadcast(&budget->returned);
    pthread_mutex_unlock(&budget->lock);
}

int pg_budget_resize(struct pg_budget *budget, uint64_t total, uint64_t patience, int (*ask)(void))
{
    uint64_t began = pg_now();
    pid_t owner = getpid();
    int error = 0;

    pthread_mutex_lock(&budget->lock);
    if (sum_of_floors(budget) > total)
        error = -PG_NO_ROOM;
    else
        budget->total = total;
    /* Another one may have changed it since: then that is what it comes to. */
    while (!error && budget->leased > budget->total) {
        pg_ask_all(budget, NULL);
        pg_wait_until(&budget->returned, &budget->lock, pg_now() + SLICE);
        pthread_mutex_unlock(&budget->lock);
        error = ask() ? -PG_INTERRUPTED : pg_now() - began >= patience ? -ETIMEDOUT : 0;
        /* A signal handler has forked: here the lock is as it was at that moment. */
        if (getpid() != owner)
            return -PG_INTERRUPTED;
        pthread_mutex_lock(&budget->lock);
    }
    if (error == -ETIMEDOUT && budget->leased <= budget->total)
        error = 0;
    pthread_cond_broadcast(&budget->returned);
    pthread_mutex_unlock(&budget->lock);
    return error;
}

/* While its lease stays as it is: a region has a frame only after the lease for it, and gives the
 * lease up only after the frame. */
static struct pg_holding holding_of(const struct pg_member *member)
{
    uint64_t frames = __atomic_load_n(member->frames, __ATOMIC_RELAXED);

    return (struct pg_holding){member->id, member->lease, frames * member->frame};
}

void pg_budget_shares(struct pg_budget *budget, struct pg_budget_counters *counters,
                      struct pg_holding *shares, size_t room)
{
    uint64_t sum = 0;

    pthread_mutex_lock(&budget->lock);
    *counters = budget->counters;
    counters->total = budget->total;
    counters->leased = budget->leased;
    counters->floors = sum_of_floors(budget);
    counters->members = 0;
    for (const struct pg_member *member = budget->members; member; member = member->next) {
        if (counters->members < room)
            shares[counters->members] = holding_of(member);
        counters->members++;
        sum += pg_held(member);
    }
    if (sum != budget->leased) {
        pg_say("pagemove: leases of %llu bytes in all are counted as %llu\n",
               (unsigned long long)sum, (unsigned long long)budget->leased);
        abort();
    }
    pthread_mutex_unlock(&budget->lock);
}

void pg_budget_counters(struct pg_budget *budget, struct pg_budget_counters *counters)
{
    pg_budget_shares(budget, counters, NULL, 0);
}

void pg_budget_describe(struct pg_budget *budget, char *text, size_t length)
{
    size_t used = 0;
    unsigned named = 0;

    text[0] = 0;
    pthread_mutex_lock(&budget->lock);
    for (const struct pg_member *member = budget->members; member; member = member->next) {
        int more;
        if (!member->floor)
            continue;
        more = named++ == MOST_NAMED ? snprintf(text + used, length - used, ", and others")
                                     : snprintf(text + used, length - used, "%s%.200s (%llu KiB)",
                                                named > 1 ? ", " : "", member->label,
                                                (unsigned long long)member->floor / 1024);
        if (named > MOST_NAMED || more < 0 || used + (size_t)more >= length)
            break;
        used += (size_t)more;
    }
    pthread_mutex_unlock(&budget->lock);
}

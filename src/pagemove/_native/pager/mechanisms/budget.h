/* One limit for several regions.
 *
 * Each of them has a lease: bytes of the budget that are its own until it returns them. It is at
 * its limit when all of its lease is in use, and then asks for more. What nobody has is its at
 * once; else a colder region is asked to shrink, which it does by threads of its own and in its
 * own time, while who has asked goes on with what it has. So the leases never add up to more than
 * the budget, whatever the regions do, and none waits for another that hangs.
 *
 * Locks: a region's before the budget's, which nobody holds while waiting for anything. Nothing
 * here knows of regions. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_BUDGET_H
#define PAGEMOVE_PAGER_MECHANISMS_BUDGET_H

#include <stddef.h>
#include <stdint.h>

struct pg_budget;

/* A region's part in it. But for the last three all belongs to whoever has the budget's lock. */
struct pg_member {
    struct pg_budget *budget;
    const char *label;
    uint64_t frame;         /* bytes; leases are whole frames */
    uint64_t most;          /* it has no use for more than this */
    const uint32_t *frames; /* how many of the lease are in use; it is looked at without a lock */
    /* Ask for what `wanted` says to be returned; pg_budget_shrunk has to be called after that.
     * 0 or -errno. Called with the budget's lock, maybe with that of another region. */
    int (*shrink)(struct pg_member *member);

    struct pg_member *next, **link;
    uint64_t id;              /* no other of the budget has had it */
    uint64_t lease, granted;  /* what is its own, and what it has yet to pick up */
    uint64_t floor;           /* it cannot do with less */
    uint64_t wanted;          /* to be returned */
    struct pg_member *heir;   /* who is to have that */
    int asked;                /* to return something, and not done with it */
    uint64_t unwilling_until; /* could not return what was wanted, by the budget's clock */
    uint64_t look_again;      /* not before that is anybody asked for its sake */
    uint64_t heat, cooled;    /* what it cost lately to miss, and when that was last halved */

    uint64_t missed, reads, reused; /* bytes read, at so many times, and blocks that were touched
                                     * again right after they had left: yet to be counted */
};

struct pg_budget_counters {
    uint64_t total, leased, floors;  /* bytes */
    uint64_t grown, returned, moved; /* bytes leased, returned, passed from one to another so far */
    uint64_t refused;                /* requests to return something that were not met in full */
    uint32_t members;
};

/* NULL: no memory. Held by who has made it, and by each region until it has gone. */
struct pg_budget *pg_budget_new(uint64_t total);
struct pg_budget *pg_budget_hold(struct pg_budget *budget);
void pg_budget_release(struct pg_budget *budget);

/* Change the total, at once for who asks from now on; return when all have returned what is too
 * much. -PG_NO_ROOM: the regions need more than that, and nothing has changed. -ETIMEDOUT after so
 * many nanoseconds, or -PG_INTERRUPTED as of `ask`, which is called now and then: some hold more
 * for now, and are asked again as long as that is so. */
int pg_budget_resize(struct pg_budget *budget, uint64_t total, uint64_t patience, int (*ask)(void));

/* What a member has of it. */
struct pg_holding {
    uint64_t id, leased, resident; /* bytes; resident is never more than leased */
};

/* All of one moment, as leases go: what is in memory never adds up to more than what is leased.
 * `shares` has room for so many members; the counters say how many there are. Ends the process if
 * the leases do not add up. */
void pg_budget_shares(struct pg_budget *budget, struct pg_budget_counters *counters,
                      struct pg_holding *shares, size_t room);
void pg_budget_counters(struct pg_budget *budget, struct pg_budget_counters *counters);

/* Enter and leave: with nothing, and returning all. */
void pg_budget_enter(struct pg_budget *budget, struct pg_member *member);
void pg_budget_leave(struct pg_member *member);

/* Have at least so much as long as the floor is not set to less, once others have returned it; it
 * is to be picked up. 0; -PG_NO_ROOM, the floors of all would be more than there is; -PG_NOT_NOW,
 * others have not returned enough until then; -PG_INTERRUPTED as of `stop`. Then the caller
 * sets the floor to what it is without this. */
int pg_budget_claim(struct pg_member *member, uint64_t floor, uint64_t until,
                    int (*stop)(void *argument), void *argument);

/* It has so much already, and keeps it. */
void pg_budget_set_floor(struct pg_member *member, uint64_t floor);

/* One frame more is needed than the lease has. Returns how many bytes that is larger by now. */
uint64_t pg_budget_ask(struct pg_member *member);

/* Bytes that the lease is larger by from now on. */
uint64_t pg_budget_pick_up(struct pg_member *member);

/* How much the lease could be with all that nobody uses; and with all that can be claimed. */
uint64_t pg_budget_reach(struct pg_member *member);
uint64_t pg_budget_claimable(struct pg_member *member);

/* Bytes to return, if any; one frame is returned; no more is going to be. */
uint64_t pg_budget_wanted(struct pg_member *member);
void pg_budget_return(struct pg_member *member);
void pg_budget_shrunk(struct pg_member *member);

static inline void pg_member_missed(struct pg_member *member, uint64_t bytes)
{
    if (member->budget) {
        __atomic_add_fetch(&member->missed, bytes, __ATOMIC_RELAXED);
        __atomic_add_fetch(&member->reads, 1, __ATOMIC_RELAXED);
    }
}

static inline void pg_member_reused(struct pg_member *member)
{
    if (member->budget)
        __atomic_add_fetch(&member->reused, 1, __ATOMIC_RELAXED);
}

/* Who is in it, and needs how much, for people. */
void pg_budget_describe(struct pg_budget *budget, char *text, size_t length);

#endif

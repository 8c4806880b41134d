/* Who is asked to return memory for whom. For budget.c: all want the lock of the budget. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_HEAT_H
#define PAGEMOVE_PAGER_MECHANISMS_HEAT_H

#include <pthread.h>
#include <stdint.h>

#include "pager/mechanisms/budget.h"

struct pg_budget {
    pthread_mutex_t lock;
    pthread_cond_t returned; /* something, or a floor is lower */
    uint64_t total, leased;  /* leased: of all members, granted included */
    uint64_t claimed;        /* what members lack of their floors: nobody else may have it */
    uint64_t ids;
    uint64_t clock; /* bytes that all have read so far: time passes with the work */
    struct pg_member *members;
    unsigned holders;
    struct pg_budget_counters counters;
};

static inline uint64_t pg_held(const struct pg_member *member)
{
    return member->lease + member->granted;
}

static inline uint64_t pg_lacking(const struct pg_member *member)
{
    return member->floor > pg_held(member) ? member->floor - pg_held(member) : 0;
}

static inline uint64_t pg_spare(const struct pg_member *member)
{
    return pg_held(member) > member->floor ? pg_held(member) - member->floor : 0;
}

/* Change what a member has, and what it is to have at least (budget.c). */
void pg_set_lease(struct pg_member *member, uint64_t lease, uint64_t granted, uint64_t floor);

/* What changes hands at once, in whole frames of a member: so little that it can be undone. */
uint64_t pg_chunk(const struct pg_member *member);

/* Half of what was missed is forgotten whenever half of the budget has been read anew. */
uint64_t pg_heat_of(struct pg_member *member);

int pg_can_be_asked(const struct pg_member *member);

/* Of all that miss less for what they have the one that misses least. */
void pg_ask_coldest(struct pg_member *member);

/* Ask all for their part of what is too much, or claimed: as much as is not asked for already. */
void pg_ask_all(struct pg_budget *budget, const struct pg_member *but);

#endif

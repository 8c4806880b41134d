/* How much a taker asks for ahead of what has come.
 *
 * As much as comes within a round trip and a few milliseconds: less leaves the connection idle, and
 * more has a touch wait behind it. What a connection can carry is not known, and changes: the rate
 * of the last answers stands for it. Where that is low because little was asked for, what this
 * allows grows with each answer. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_PACE_H
#define PAGEMOVE_PAGER_MECHANISMS_PACE_H

#include <stdint.h>

struct pg_pace {
    uint64_t unit;
    double rate;         /* bytes a ns */
    uint64_t round_trip; /* ns: the shortest that was seen; 0: none was */
};

/* Bytes that may be asked for and not have come. */
static inline uint64_t pg_ahead(const struct pg_pace *pace)
{
    const double queue = 5e6, gain = 1.25;
    uint64_t least = 4 * pace->unit, most = 4 << 20;
    double comes = pace->rate * (gain * (double)pace->round_trip + queue);

    most = most < least ? least : most;
    return comes<(double)least ? least : comes>(double) most ? most : (uint64_t)comes;
}

/* Take the time of an answer that has no bytes to speak of. */
static inline void pg_heard_after(struct pg_pace *pace, uint64_t nanoseconds)
{
    if (!pace->round_trip || nanoseconds < pace->round_trip)
        __atomic_store_n(&pace->round_trip, nanoseconds, __ATOMIC_RELAXED);
}

/* Take the time from one answer to the next. */
static inline void pg_came_after(struct pg_pace *pace, uint64_t nbytes, uint64_t nanoseconds)
{
    double rate = (double)nbytes / (double)(nanoseconds > 1000 ? nanoseconds : 1000);

    pace->rate += (rate - pace->rate) * (pace->rate > 0 ? 0.25 : 1.0);
}

#endif

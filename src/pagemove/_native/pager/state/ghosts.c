/* What blocks that are missed soon after they have left say about who should have left instead.
 *
 * Of as many blocks as the limit has frames it is remembered that they have left, and as what. One
 * that is missed would have stayed, had its list had more frames; so it gets some, at the expense
 * of the others. Lists of blocks that are used again and again prove their worth this way, and a
 * pattern that has changed is followed.
 */
#include <errno.h>
#include <stdlib.h>

#include "pager/state/policy.h"

enum { FEWEST_GHOSTS = 64 };

/* What a block was when it left. */
enum kind {
    ONCE,
    HOT,
    NEWEST, /* of a sequence, in this order */
    OLDEST,
};

#define MOST_EVICTED ((UINT32_C(1) << 30) - 1)

int pg_ghosts_init(struct pg_policy *policy, uint32_t frames)
{
    uint32_t ghosts = FEWEST_GHOSTS;

    while (ghosts < frames && ghosts < UINT32_C(1) << 31)
        ghosts *= 2;
    policy->ghosts = calloc(ghosts, sizeof *policy->ghosts);
    policy->ghost_mask = ghosts - 1;
    return policy->ghosts ? 0 : -ENOMEM;
}

void pg_ghosts_free(struct pg_policy *policy)
{
    free(policy->ghosts);
}

uint64_t pg_ghosts_bytes(const struct pg_policy *policy)
{
    return policy->ghosts ? (policy->ghost_mask + UINT64_C(1)) * sizeof *policy->ghosts : 0;
}

static struct pg_ghost *ghost_of(const struct pg_policy *policy, uint32_t number)
{
    return &policy->ghosts[(number * UINT32_C(0x9E3779B1) >> 7) & policy->ghost_mask];
}

static enum kind kind_of(const struct pg_policy *policy, const struct pg_block *block)
{
    if (block->flags & PG_SEQUENCE)
        return policy->oldest_first ? OLDEST : NEWEST;
    return block->hot ? HOT : ONCE;
}

void pg_remember(struct pg_policy *policy, pg_entry entry)
{
    const struct pg_block *block = &policy->blocks->at[entry];

    policy->evictions++;
    if (policy->ghosts)
        *ghost_of(policy, block->number) =
            (struct pg_ghost){.number = block->number,
                              .evicted = policy->evictions & MOST_EVICTED,
                              .kind = kind_of(policy, block)};
}

static uint32_t more(uint32_t value, uint32_t step, uint32_t most)
{
    return value + step < most ? value + step : most;
}

static uint32_t less(uint32_t value, uint32_t step, uint32_t least)
{
    return value > least + step ? value - step : least;
}

/* A stretch is read again, part of which has left. If that was the newest part, then because older
 * stretches stay, which may not be needed any more: these leave for a while. If some of them are
 * missed, it is a loop, of which a part can only stay if the newest part leaves. */
static void missed_of_sequence(struct pg_policy *policy, enum kind kind)
{
    uint32_t frames = policy->frames->limit;

    policy->scan_wanted = more(policy->scan_wanted, frames / 64, policy->scan_most);
    if (kind == OLDEST) {
        policy->against_oldest++;
        if (policy->against_oldest > frames / 32) {
            policy->oldest_first = 0;
            policy->newest_since = policy->evictions;
        }
    } else if (policy->evictions - policy->newest_since >= frames) {
        policy->oldest_first = frames;
        policy->against_oldest = 0;
    }
}

enum pg_missed pg_miss(struct pg_policy *policy, uint32_t number, int sequential)
{
    uint32_t frames = policy->frames->limit, age;
    const struct pg_ghost *ghost;

    if (!policy->ghosts)
        return PG_NEW;
    ghost = ghost_of(policy, number);
    age = (policy->evictions - ghost->evicted) & MOST_EVICTED;
    if (!ghost->evicted || ghost->number != number || age >= frames)
        return PG_NEW;
    if (pg_is_tight(policy->frames)) {
        if (age < frames / 2)
            policy->oldest_first = frames;
        return PG_AGAIN;
    }
    if (ghost->kind == NEWEST || ghost->kind == OLDEST) {
        /* One that is touched by itself says nothing of how sequences are read. */
        if (sequential)
            missed_of_sequence(policy, ghost->kind);
        return PG_AGAIN;
    }
    policy->scan_wanted = less(policy->scan_wanted, frames / 64, policy->scan_least);
    /* That one is needed again which was needed once before is no wonder. That it is hot was seen:
     * that weighs more. */
    if (ghost->kind == ONCE)
        policy->once_wanted = more(policy->once_wanted, 1, pg_most_once(frames));
    else
        policy->once_wanted = less(policy->once_wanted, 2, pg_least_once(frames));
    return PG_AGAIN_HOT;
}

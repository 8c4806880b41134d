#include "pager/state/policy.h"

enum {
    MOST_STEPS = 64,
};

static uint32_t clamp(uint64_t value, uint32_t least, uint32_t most)
{
    return value < least ? least : value > most ? most : (uint32_t)value;
}

/* With fewer it is seldom known in time what is hot. With twice as many a few per cent less is read
 * where what is hot nearly fills memory, and everywhere there are more faults without I/O, each of
 * which costs most of what reading a block from the page cache does. */
static uint32_t standby_of(uint32_t frames, uint32_t most)
{
    if (frames < PG_TIGHT)
        return 1;
    return clamp(frames / 16, 1, most);
}

void pg_policy_share(struct pg_policy *policy, uint32_t frames, uint64_t block_size,
                     uint64_t ahead_most, uint32_t standby_most)
{
    /* What was learnt is kept as shares: the limit of a region with a budget comes and goes, down
     * to where there is nothing to share. */
    if (!policy->shared)
        policy->once_share = 0.25;
    if (policy->shared >= PG_TIGHT) {
        policy->once_share = (double)policy->once_wanted / policy->shared;
        policy->scan_share = (double)policy->scan_wanted / policy->shared;
    }
    policy->shared = frames;
    /* Far enough to hide the store behind the reader, and within an eighth of the limit. */
    policy->window_most =
        clamp(clamp(ahead_most / block_size, 4, 256), 1, clamp(frames / 8, 1, 256));
    policy->recent_most = 2 * policy->window_most + 2;
    policy->scan_least = clamp(frames / 8, policy->recent_most, UINT32_MAX);
    policy->scan_most = clamp(frames - frames / 8, policy->scan_least, UINT32_MAX);
    policy->scan_wanted =
        clamp((uint64_t)(policy->scan_share * frames), policy->scan_least, policy->scan_most);
    policy->once_wanted =
        clamp((uint64_t)(policy->once_share * frames), pg_least_once(frames), pg_most_once(frames));
    policy->standby_wanted = policy->frames->limited ? standby_of(frames, standby_most) : 0;
    policy->scan_run = 8;
}

/* What cannot leave now: its copy is being written, or it is dirty and must not be. */
static int stays(const struct pg_policy *policy, pg_entry entry, enum pg_choice choice)
{
    const struct pg_block *block = &policy->blocks->at[entry];

    if (block->flags & PG_COPY_IN_FLIGHT)
        return 1;
    if (!(block->flags & PG_DIRTY) || choice == PG_ANY)
        return 0;
    return choice == PG_CLEAN || policy->is_late(policy->argument, block->number);
}

static pg_entry first_to_leave(const struct pg_policy *policy, enum pg_list list, int newest,
                               enum pg_choice choice)
{
    const struct pg_blocks *blocks = policy->blocks;
    pg_entry entry = newest ? blocks->tail[list] : blocks->head[list];

    /* Where nearly all are dirty, writing some is quicker than finding one that is not; unless they
     * cannot be written. */
    for (int steps = 0; entry != PG_NONE && stays(policy, entry, choice); steps++) {
        if (steps == MOST_STEPS && !policy->patient)
            return PG_NONE;
        entry = newest ? blocks->link[entry].prev : blocks->link[entry].next;
    }
    return entry;
}

/* Where few frames serve more blocks than there are, each leaves just before it is needed again, in
 * any fixed order. Chance breaks the circle; that it is often the newest keeps the others for
 * whoever needs many of them at once. */
static pg_entry any_to_leave(struct pg_policy *policy, enum pg_choice choice)
{
    const struct pg_blocks *blocks = policy->blocks;
    pg_entry entry = blocks->head[PG_ONCE];

    policy->random = policy->random * 1664525 + 1013904223;
    if (policy->random >> 31) {
        entry = blocks->tail[PG_ONCE];
        return entry != PG_NONE && !stays(policy, entry, choice) ? entry : PG_NONE;
    }
    for (uint32_t steps = (policy->random >> 16) % (blocks->length[PG_ONCE] + 1);
         steps && entry != PG_NONE && blocks->link[entry].next != PG_NONE; steps--)
        entry = blocks->link[entry].next;
    return entry != PG_NONE && !stays(policy, entry, choice) ? entry : PG_NONE;
}

/* Whether blocks of sequences are to leave before others: there are many of them, or none has come
 * for as long as it takes to replace everything. */
static int too_many_scanned(const struct pg_policy *policy)
{
    return policy->blocks->length[PG_RECENT] + policy->blocks->length[PG_SCAN] >
               policy->scan_wanted ||
           policy->evictions - policy->scanned > policy->frames->limit;
}

pg_entry pg_choose(struct pg_policy *policy, enum pg_choice choice)
{
    struct pg_blocks *blocks = policy->blocks;
    int once = blocks->length[PG_ONCE] >= policy->once_wanted;
    pg_entry entry = PG_NONE;

    if (pg_is_tight(policy->frames) && policy->oldest_first) {
        policy->oldest_first--;
        entry = any_to_leave(policy, choice);
        if (entry != PG_NONE)
            return entry;
    }

    if (too_many_scanned(policy)) {
        entry = first_to_leave(policy, PG_SCAN, !policy->oldest_first, choice);
        if (entry != PG_NONE && policy->oldest_first)
            policy->oldest_first--;
    }
    if (entry == PG_NONE)
        entry = first_to_leave(policy, once ? PG_ONCE : PG_HOT, 0, choice);
    if (entry == PG_NONE)
        entry = first_to_leave(policy, once ? PG_HOT : PG_ONCE, 0, choice);
    if (entry == PG_NONE)
        entry = first_to_leave(policy, PG_SCAN, !policy->oldest_first, choice);
    if (entry == PG_NONE)
        entry = first_to_leave(policy, PG_RECENT, 0, choice);
    return entry;
}

void pg_keep(struct pg_policy *policy, pg_entry entry, int sequential)
{
    struct pg_blocks *blocks = policy->blocks;

    /* With few frames nothing may be kept from leaving: the others would be too few. */
    if (pg_is_tight(policy->frames)) {
        pg_push_tail(blocks, PG_ONCE, entry);
    } else if (sequential) {
        policy->scanned = policy->evictions;
        pg_push_tail(blocks, PG_RECENT, entry);
    } else {
        pg_push_tail(blocks, blocks->at[entry].hot ? PG_HOT : PG_ONCE, entry);
    }
    if (blocks->length[PG_RECENT] > policy->recent_most)
        pg_push_tail(blocks, PG_SCAN, blocks->head[PG_RECENT]);
}

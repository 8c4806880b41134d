#include "pager/mechanisms/heat.h"

#include <stddef.h>

enum {
    PART = 64,                /* of the budget changes hands at once, */
    LARGEST_CHUNK = 16 << 20, /* but not more bytes than that */
    WAIT = 64 << 10,          /* bytes that come in the time for which each read waits */
    REUSE = 8,                /* what was touched again right after it left counts so often */
};

uint64_t pg_chunk(const struct pg_member *member)
{
    uint64_t bytes = member->budget->total / PART;

    if (bytes > LARGEST_CHUNK)
        bytes = LARGEST_CHUNK;
    if (member->lease < member->most && bytes > member->most - member->lease)
        bytes = member->most - member->lease;
    bytes -= bytes % member->frame;
    return bytes > member->frame ? bytes : member->frame;
}

uint64_t pg_heat_of(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;
    uint64_t period = budget->total / 2 + 1, periods;
    uint64_t missed = __atomic_exchange_n(&member->missed, 0, __ATOMIC_RELAXED);

    budget->clock += missed;
    periods = (budget->clock - member->cooled) / period;
    member->heat = periods < 64 ? member->heat >> periods : 0;
    member->cooled += periods * period;
    member->heat += missed + WAIT * __atomic_exchange_n(&member->reads, 0, __ATOMIC_RELAXED);
    member->heat +=
        REUSE * (member->frame + WAIT) * __atomic_exchange_n(&member->reused, 0, __ATOMIC_RELAXED);
    return member->heat;
}

/* What a member can be made to return at once, for another. */
static uint64_t part_of(const struct pg_member *member, uint64_t bytes)
{
    uint64_t most = pg_spare(member);

    bytes = (bytes + member->frame - 1) / member->frame * member->frame;
    return bytes < most ? bytes : most - most % member->frame;
}

/* Whether memory is worth more to one than to another, also after a part has changed hands: then
 * it does not come back. Both are measured by what missing blocks costs them for each byte they
 * have. */
static int is_worth_it(struct pg_member *to, struct pg_member *from, uint64_t bytes)
{
    double gained = (double)pg_heat_of(to) / ((double)pg_held(to) + (double)bytes);
    double lost = (double)pg_heat_of(from) / ((double)pg_held(from) - (double)bytes + 1);

    return gained > lost * 9 / 8;
}

int pg_can_be_asked(const struct pg_member *member)
{
    return !member->asked && pg_spare(member) >= member->frame;
}

/* Have a member return something, to `heir` or to all. What it has not picked up takes no time. */
static void request(struct pg_member *member, uint64_t bytes, struct pg_member *heir)
{
    uint64_t there = member->granted < bytes ? member->granted : bytes;

    pg_set_lease(member, member->lease, member->granted - there, member->floor);
    if (heir)
        pg_set_lease(heir, heir->lease, heir->granted + there, heir->floor);
    bytes = (bytes - there) / member->frame * member->frame;
    if (!bytes)
        return;
    member->wanted = bytes;
    member->heir = heir;
    member->asked = 1;
    if (member->shrink(member)) {
        member->asked = 0;
        member->wanted = 0;
        member->heir = NULL;
        member->unwilling_until = member->budget->clock + member->budget->total / 8;
    }
}

void pg_ask_coldest(struct pg_member *member)
{
    struct pg_budget *budget = member->budget;
    struct pg_member *coldest = NULL;
    uint64_t bytes = 0;
    double least = 0;

    for (struct pg_member *other = budget->members; other; other = other->next) {
        double heat = (double)pg_heat_of(other) / ((double)pg_held(other) + 1);
        if (other == member || !pg_can_be_asked(other) || budget->clock < other->unwilling_until)
            continue;
        if (coldest && (heat > least || (heat == least && pg_spare(other) <= pg_spare(coldest))))
            continue;
        coldest = other;
        least = heat;
    }
    if (coldest)
        bytes = part_of(coldest, pg_chunk(member));
    if (bytes && is_worth_it(member, coldest, bytes))
        request(coldest, bytes, member);
}

/* What a member has not picked up, and is not to. */
static void put_back(struct pg_member *member)
{
    uint64_t bytes = member->granted < pg_spare(member) ? member->granted : pg_spare(member);

    pg_set_lease(member, member->lease, member->granted - bytes, member->floor);
}

void pg_ask_all(struct pg_budget *budget, const struct pg_member *but)
{
    uint64_t needed, coming = 0, spares = 0;

    for (struct pg_member *member = budget->members; member; member = member->next) {
        if (member != but)
            put_back(member);
        coming += member->wanted;
        spares += member != but && pg_can_be_asked(member) ? pg_spare(member) : 0;
    }
    needed = budget->leased + budget->claimed;
    if (needed <= budget->total + coming || !spares)
        return;
    needed -= budget->total + coming;
    for (struct pg_member *member = budget->members; member; member = member->next) {
        double share = (double)pg_spare(member) / (double)spares * (double)needed;
        uint64_t bytes;
        if (member == but || !pg_can_be_asked(member))
            continue;
        bytes = part_of(member, (uint64_t)share + 1);
        if (bytes)
            request(member, bytes, NULL);
    }
}

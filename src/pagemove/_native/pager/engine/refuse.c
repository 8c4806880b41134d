/* Stores into a region of mode "r", by code that does not ask NumPy whether it may.
 *
 * All that is mapped there is write-protected, so such a store is an event, as one to a page that
 * is not there is. Whoever stores is to get SIGBUS, and a system call EFAULT: the page is poisoned
 * for a moment. The contents are the store's, and read anew by whoever reads them next. */
#include "pager/engine/faults.h"
#include "pager/engine/pin.h"
#include "pager/mechanisms/voice.h"

/* ns: long enough for a thread to wake up and meet the poison, and short, for whoever reads the
 * page meanwhile meets it too. One that wakes up later stores once more, and is refused for longer.
 */
#define SHORTEST UINT64_C(1000000)
#define LONGEST UINT64_C(64000000)

/* ns between messages of one region, for code that retries again and again. */
#define SILENCE UINT64_C(1000000000)

static void say_so(struct pg_region *region, uint64_t page)
{
    uint64_t now = pg_now();

    if (region->refused_said && now - region->refused_said < SILENCE)
        return;
    region->refused_said = now;
    pg_say(
        "pagemove: a store into bytes %llu to %llu of %s (address 0x%llx) is refused: this memory "
        "is read-only (mode 'r'), and a store raises SIGBUS, or EFAULT from a system call; "
        "open it with mode 'r+' to change the store, or 'c' to change a private copy\n",
        (unsigned long long)(page - region->base),
        (unsigned long long)(page - region->base + region->uffd.page_size), region->store.label,
        (unsigned long long)page);
}

static void pardon(struct pg_region *region, uint32_t which)
{
    uint64_t page = region->refused[which].page;

    pg_discard(&region->uffd, page, region->uffd.page_size);
    region->refused[which] = region->refused[--region->refused_count];
    pg_refill(region, page);
}

void pg_refuse(struct pg_region *region, uint64_t address)
{
    uint64_t page = address & ~(region->uffd.page_size - 1);
    uint32_t i = 0;

    region->uffd.wary = 1;
    say_so(region, page);
    if (region->refused_page == page && pg_now() < region->refused_until + LONGEST)
        region->refused_for = region->refused_for < LONGEST ? 2 * region->refused_for : LONGEST;
    else
        region->refused_for = SHORTEST;
    region->refused_page = page;
    region->refused_until = pg_now() + region->refused_for;
    while (i < region->refused_count && region->refused[i].page != page)
        i++;
    if (i == PG_REFUSED) {
        /* The last one takes the place of the one that has to go. */
        pardon(region, 0);
        i = region->refused_count;
    }
    if (i == region->refused_count)
        region->refused_count++;
    region->refused[i] = (struct pg_refused){page, region->refused_until};
    pg_discard(&region->uffd, page, region->uffd.page_size);
    pg_poison(&region->uffd, page, region->uffd.page_size);
}

uint64_t pg_next_lift(const struct pg_region *region)
{
    uint64_t first = UINT64_MAX;

    for (uint32_t i = 0; i < region->refused_count; i++)
        if (region->refused[i].until < first)
            first = region->refused[i].until;
    return first;
}

void pg_lift_refusal(struct pg_region *region)
{
    uint64_t now = pg_now();

    for (uint32_t i = region->refused_count; i--;)
        if (region->refused[i].until <= now)
            pardon(region, i);
}

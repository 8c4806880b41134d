#include "paged.h"

#include <errno.h>
#include <stddef.h>

#include "process.h"

/* Wiped by a fork, which no region outlives. An entry with `end` 0 matches nothing. */
static struct {
    uint64_t used; /* entries that have ever been in use */
    uint64_t reserved;
    struct {
        uint64_t start, end;
    } ranges[PM_PAGED_MOST];
} *paged;

int pm_paged_start(void)
{
    if (!paged)
        paged = pm_wiped_memory(sizeof *paged);
    return paged ? 0 : -errno;
}

static uint64_t load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

int pm_paged_enter(uint64_t start, uint64_t end)
{
    for (uint64_t i = 0; i < PM_PAGED_MOST; i++) {
        uint64_t nobody = 0, used = load(&paged->used);

        if (!__atomic_compare_exchange_n(&paged->ranges[i].start, &nobody, start, 0,
                                         __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            continue;
        store(&paged->ranges[i].end, end);
        while (used < i + 1 && !__atomic_compare_exchange_n(&paged->used, &used, i + 1, 0,
                                                            __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        return 0;
    }
    return -ENOSPC;
}

void pm_paged_leave(uint64_t start)
{
    uint64_t used = load(&paged->used);

    for (uint64_t i = 0; i < used; i++)
        if (load(&paged->ranges[i].start) == start) {
            store(&paged->ranges[i].end, 0);
            store(&paged->ranges[i].start, 0);
            return;
        }
}

uint64_t pm_paged_at(uint64_t start, uint64_t length)
{
    uint64_t used = paged ? load(&paged->used) : 0;

    for (uint64_t i = 0; i < used; i++) {
        uint64_t first = load(&paged->ranges[i].start);

        if (first < start + length && start < load(&paged->ranges[i].end))
            return first;
    }
    return 0;
}

#include "paged.h"

#include <errno.h>
#include <stddef.h>

#include "process.h"

static struct pm_paged *paged;

int pm_paged_start(void)
{
    if (!paged)
        paged = pm_wiped_memory(sizeof *paged);
    return paged ? 0 : -errno;
}

struct pm_paged *pm_paged_table(void)
{
    return paged;
}

static uint64_t load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

int pm_paged_enter(struct pm_paged *table, uint64_t start, uint64_t end)
{
    for (uint64_t i = 0; i < PM_PAGED_MOST; i++) {
        uint64_t nobody = 0, used = load(&table->used);

        if (!__atomic_compare_exchange_n(&table->ranges[i].start, &nobody, start, 0,
                                         __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            continue;
        store(&table->ranges[i].end, end);
        while (used < i + 1 && !__atomic_compare_exchange_n(&table->used, &used, i + 1, 0,
                                                            __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        return 0;
    }
    return -ENOSPC;
}

void pm_paged_leave(struct pm_paged *table, uint64_t start)
{
    uint64_t used = load(&table->used);

    for (uint64_t i = 0; i < used; i++)
        if (load(&table->ranges[i].start) == start) {
            store(&table->ranges[i].end, 0);
            store(&table->ranges[i].start, 0);
            return;
        }
}

uint64_t pm_paged_at(const struct pm_paged *table, uint64_t start, uint64_t length)
{
    uint64_t used = table ? load(&table->used) : 0;

    for (uint64_t i = 0; i < used; i++) {
        uint64_t first = load(&table->ranges[i].start);

        if (first < start + length && start < load(&table->ranges[i].end))
            return first;
    }
    return 0;
}

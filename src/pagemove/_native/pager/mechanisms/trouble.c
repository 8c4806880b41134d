#include "pager/mechanisms/trouble.h"

struct pg_trouble pg_troubles[PG_CALLS];

void pg_set_trouble(int call, uint64_t first, uint64_t count, uint64_t period, int error)
{
    struct pg_trouble *trouble = &pg_troubles[call];

    __atomic_store_n(&trouble->error, 0, __ATOMIC_SEQ_CST);
    trouble->first = first;
    trouble->count = count;
    trouble->period = period;
    __atomic_store_n(&trouble->calls, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&trouble->error, error, __ATOMIC_SEQ_CST);
}

int pg_trouble_due(struct pg_trouble *trouble)
{
    uint64_t call = __atomic_fetch_add(&trouble->calls, 1, __ATOMIC_RELAXED);

    if (trouble->period)
        call %= trouble->period;
    return call >= trouble->first && call - trouble->first < trouble->count
               ? __atomic_load_n(&trouble->error, __ATOMIC_RELAXED)
               : 0;
}

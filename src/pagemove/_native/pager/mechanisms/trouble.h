/* Faults of the kernel's calls that tests ask for: memory that runs out half-way, pages that are
 * merged or pinned. They hold for all regions of the process. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_TROUBLE_H
#define PAGEMOVE_PAGER_MECHANISMS_TROUBLE_H

#include <stdint.h>

/* Ways of a page into a region and out of it. */
enum pg_kernel_call { PG_CALL_COPY = 0, PG_CALL_MOVE_IN = 1, PG_CALL_MOVE_OUT = 2, PG_CALLS };

/* For tests: of every `period` pages (0: of all) that take such a way, those from `first` on, so
 * many, fail with an errno. `error` 0: none. */
void pg_set_trouble(int call, uint64_t first, uint64_t count, uint64_t period, int error);

struct pg_trouble {
    int error; /* 0: none */
    uint64_t first, count, period, calls;
};

extern struct pg_trouble pg_troubles[PG_CALLS];

/* The errno that a call is to fail with; 0: none. */
int pg_trouble_due(struct pg_trouble *trouble);

static inline int pg_trouble(enum pg_kernel_call call)
{
    struct pg_trouble *trouble = &pg_troubles[call];

    return __atomic_load_n(&trouble->error, __ATOMIC_RELAXED) ? pg_trouble_due(trouble) : 0;
}

/* How much one call takes on: page by page where any of them may be the one that fails. */
static inline uint64_t pg_portion(enum pg_kernel_call call, uint64_t length, uint64_t page)
{
    return __atomic_load_n(&pg_troubles[call].error, __ATOMIC_RELAXED) ? page : length;
}

#endif

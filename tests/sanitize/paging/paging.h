/* What the drivers of the pager share. */
#ifndef PAGEMOVE_SANITIZE_PAGING_H
#define PAGEMOVE_SANITIZE_PAGING_H

#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static inline uint64_t next(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *seed >> 33;
}

/* sharing.c: several regions under one budget, by moves or without. */
void share(uint64_t seed, int moves);

#endif

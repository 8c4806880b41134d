#include "generation.h"

#include <errno.h>
#include <time.h>

#include "process.h"

/* Wiped by a fork, so a child sees another number than what it inherited was made in. */
static uint64_t *generation;

int pm_generation_start(void)
{
    if (!generation)
        generation = pm_wiped_memory(sizeof *generation);
    return generation ? 0 : -errno;
}

uint64_t pm_generation(void)
{
    uint64_t known = __atomic_load_n(generation, __ATOMIC_ACQUIRE), made;
    struct timespec now;

    if (known)
        return known;
    /* A parent and its child cannot both come by here within a nanosecond; two threads may. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    made = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    return __atomic_compare_exchange_n(generation, &known, made, 0, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE)
               ? made
               : known;
}

uint64_t pm_generation_known(void)
{
    return *generation;
}

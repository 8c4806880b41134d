/* Runs every case, or those whose names begin with the second argument; the first is the seed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"
#include "driver.h"

static const struct {
    const char *name;
    void (*run)(uint64_t seed);
    int both; /* with the guard and without; else the case chooses */
} cases[] = {
    {"first use", case_first_use, 0},
    {"arguments", case_arguments, 1},
    {"mappings", case_mappings, 1},
    {"runs", case_runs, 1},
    {"overlaps", case_overlaps, 1},
    {"long range", case_long_range, 1},
    {"huge pages", case_huge_pages, 1},
    {"stripes", case_stripes, 0},
    {"many small", case_many_small, 1},
    {"many dense", case_many_dense, 1},
    {"many sparse", case_many_sparse, 1},
    {"many borders", case_many_borders, 1},
    {"many errors", case_many_errors, 1},
    {"bounce", case_bounce, 1},
    {"one winner", case_one_winner, 1},
    {"changing indices", case_changing_indices, 1},
    {"truth", case_truth, 0},
    {"forks", case_forks, 1},
#ifndef __SANITIZE_THREAD__ /* a descriptor closed by somebody is a race by nature */
    {"closed", case_closed, 1},
#endif
};

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    const char *only = argc > 2 ? argv[2] : "";
    double begin = seconds();

    CHECK(seed, "the seed must not be 0");
    CHECK(!pm_process_start());
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double before = seconds();
        if (strncmp(cases[i].name, only, strlen(only)))
            continue;
        if (cases[i].both)
            with_guard_and_without(cases[i].run, seed);
        else
            cases[i].run(seed);
        printf("%-17s %5.2f s\n", cases[i].name, seconds() - before);
        fflush(stdout);
    }
    printf("all passed in %.1f s with seed %ju\n", seconds() - begin, (uintmax_t)seed);
    return 0;
}

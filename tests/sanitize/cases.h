/* Every case, in the order in which they run. */
#ifndef PAGEMOVE_CASES_H
#define PAGEMOVE_CASES_H

#include <stdint.h>

/* case_moves.c: pm_move, one thread */
void case_arguments(uint64_t seed);
void case_mappings(uint64_t seed);
void case_runs(uint64_t seed);
void case_overlaps(uint64_t seed);
void case_long_range(uint64_t seed);
void case_huge_pages(uint64_t seed);
void case_stripes(uint64_t seed);

/* case_many.c: pm_move_many against page by page, one thread */
void case_many_small(uint64_t seed);
void case_many_dense(uint64_t seed);
void case_many_sparse(uint64_t seed);
void case_many_borders(uint64_t seed);
void case_many_errors(uint64_t seed);

/* case_threads.c: several threads */
void case_bounce(uint64_t seed);
void case_one_winner(uint64_t seed);
void case_changing_indices(uint64_t seed);

/* case_truth.c: the stale EAGAIN provoked, and every answer compared with the contents */
void case_truth(uint64_t seed);

/* case_process.c: descriptors and forks */
void case_first_use(uint64_t seed);
void case_closed(uint64_t seed);
void case_forks(uint64_t seed);

#endif

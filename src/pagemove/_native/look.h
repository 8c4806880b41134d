/* What is in a page table, without touching the pages. */
#ifndef PAGEMOVE_LOOK_H
#define PAGEMOVE_LOOK_H

#include <stdint.h>

#include "process.h"

/* Bytes from `start` in which every page is there: present, swapped out, or a marker. */
uint64_t pm_look_there(struct pm_process *process, uint64_t start, uint64_t length);

/* Bytes from `start` in which every page is a hole, or -errno where that cannot be found out. */
int64_t pm_look_holes(struct pm_process *process, uint64_t start, uint64_t length);

/* Bytes from the start in which every source page is there and every destination page a hole;
 * else what the first pages say: -EEXIST or -ENOENT. *zero: the source may be the zero page. A
 * swapped destination, or a marker, may pass for a hole: the kernel will refuse it. */
int64_t pm_look_pair(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                     int *zero);

/* Bytes from the start in which the pages, seen by pm_look_pair before, are at the destination now.
 *
 * The zero page counts as nothing at the destination: it is what a reader gets there, and then a
 * discarded source would look the same. It counts as nothing at the source too, as what a reader
 * gets after the page has moved, unless it may have been there before. */
uint64_t pm_look_moved(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                       int zero);

/* Whether the range has a huge zero page in it: 1, 0, or -errno. */
int pm_look_huge_zero(struct pm_process *process, uint64_t start, uint64_t length);

/* Bytes from `start` in which no page is mapped by a huge page, but for that of zeros; or -errno.
 */
int64_t pm_look_small(struct pm_process *process, uint64_t start, uint64_t length);

/* Whether one mapping holds the whole range: 1, 0, or -errno where the kernel cannot tell. */
int pm_look_one_vma(struct pm_process *process, uint64_t start, uint64_t length);

/* Whether anything is mapped at a page. */
int pm_look_mapped(struct pm_process *process, uint64_t page);

/* A byte a page into `vector`, 1 in the lowest bit for a page that is there; swapped pages and
 * markers come as holes, and without `zeros` the zero page too. `sparse`: most are expected to be
 * holes. 0 or -errno. */
int pm_look_at_all(struct pm_process *process, uint64_t start, uint64_t length, int sparse,
                   int zeros, unsigned char *vector);

/* For each page -ENOENT where it is a hole, swapped out or a marker, 0 or more where it is there,
 * and -EFAULT for the zero page or where nothing is mapped. 0 or -errno. */
int pm_look_where(struct pm_process *process, void **pages, size_t count, int *status);

/* How many pages from the start of such a vector are in memory. */
size_t pm_leading_resident(const unsigned char *vector, size_t pages);

#endif

/* What is done about defects of kernels, in the calls that move pages: to be deleted, one after the
 * other, when the kernels are. docs/explanation/kernel-versions.md describes them. */
#ifndef PAGEMOVE_GUARD_H
#define PAGEMOVE_GUARD_H

#include <stdint.h>

#include "known.h"
#include "process.h"

/* The defects of a kernel release such as "6.18.44-generic". */
uint32_t pm_defects_of(const char *release);
uint32_t pm_running_defects(void);

/* One step on a kernel with the stale EAGAIN: it is shown only pages that were looked at. */
int64_t pm_step_guarded(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                        uint64_t src, uint64_t length, int *inside);

/* On a kernel with CVE-2026-31397, a huge zero page must not be moved whole. */
int pm_refuse_huge_zero(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length);

/* On a kernel with split-spin: how much can be moved without leaving it to the kernel to split a
 * huge page, which it may try forever. -EBUSY or -EEXIST: nothing.
 *
 * What this cannot see: that a huge page which moves whole will be split, because the destination
 * has a page table; and huge pages that are mapped page by page already. */
int64_t pm_split_first(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length);

#endif

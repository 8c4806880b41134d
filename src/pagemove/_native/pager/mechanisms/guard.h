/* What is done about a defect of kernels where pages move: to be deleted when they are (guard.h of
 * the calls). */
#ifndef PAGEMOVE_PAGER_MECHANISMS_GUARD_H
#define PAGEMOVE_PAGER_MECHANISMS_GUARD_H

#include <stdint.h>

#include "pager/mechanisms/uffd.h"

/* The kernel's stale EAGAIN: it has moved a page and then says EEXIST, or ENOENT of a huge page.
 * Who knows that the page was at the source and the destination empty can tell. */
int pg_has_moved(const struct pg_uffd *uffd, int64_t error, uint64_t dst, uint64_t src);

#endif

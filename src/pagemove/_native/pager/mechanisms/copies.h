/* Pages that are copied into a region and out of it, where they do not move. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_COPIES_H
#define PAGEMOVE_PAGER_MECHANISMS_COPIES_H

#include <stdint.h>

#include "pager/mechanisms/uffd.h"

/* Copy into holes, write-protected or not; pages that are there already are left alone. */
int pg_copy_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
               int protect);

/* The same, but each page of the source is given up as soon as it is copied, also before a failure.
 */
int pg_squeeze_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                  int protect);

/* Give up the pages of a slot that the region has as well. 0 or -errno. */
int pg_give_up_copied(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length);

/* Copy the pages of a block that are there to an empty outgoing slot, and say which they were.
 * 0 or -errno. */
int pg_copy_out(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                struct pg_pages *pages);

#endif

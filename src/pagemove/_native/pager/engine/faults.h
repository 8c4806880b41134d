/* Faults: of blocks that are missing or protected, of stores that are refused, and none any more.
 * What region.h says of locks holds. */
#ifndef PAGEMOVE_PAGER_ENGINE_FAULTS_H
#define PAGEMOVE_PAGER_ENGINE_FAULTS_H

#include "pager/engine/region.h"

/* One fault, and the event loop of a region that has threads of its own. */
struct pm_uffd_msg;
void pg_fault(struct pg_region *region, const struct pm_uffd_msg *message, uint64_t began);
void pg_serve(struct pg_region *region);

/* Have the event loop look at when jobs are overdue. */
void pg_look_at_jobs(const struct pg_region *region);

/* refuse.c */

/* A store to a page of a region of mode "r": it raises SIGBUS, or EFAULT from a system call. */
void pg_refuse(struct pg_region *region, uint64_t address);

/* Unpoison such pages for readers; return when to do it next. */
void pg_lift_refusal(struct pg_region *region);
uint64_t pg_next_lift(const struct pg_region *region);

/* lost.c */

/* Nobody is to touch the region any more: the program has closed the sentinel, or `error` is why
 * faults cannot be received. */
void pg_lose(struct pg_region *region, int error);

/* The same, silently: the program closes it while there are arrays. 0 or -errno: it is there as
 * before. Needs no lock, but the descriptors. */
int pg_shut(struct pg_region *region);

/* Save what is dirty. -PG_LOST when all is saved, or why it is not. Needs no lock. */
int pg_save_lost(struct pg_region *region);

/* As pg_bring_in, into a region that is lost: nobody is to touch it, and the kernel puts pages only
 * where somebody may. */
int pg_bring_in_lost(struct pg_region *region, uint64_t address, uint64_t slot);

#endif

/* Regions of mode "r" in a forked child: at the same addresses, opened again when first touched. */
#ifndef PAGEMOVE_PAGER_HEIRS_H
#define PAGEMOVE_PAGER_HEIRS_H

#include <stdint.h>

#include "pager/pager.h"

struct pg_region;

/* One that was inherited: its addresses are there, and nothing else before somebody wants it. */
struct pg_heir;

/* In a child: what has become of a region that this process, or one before it, has opened. That is
 * only compared. NULL: it is not there, or with `early` 0 not yet. */
struct pg_heir *pg_heir_of(const struct pg_region *origin, int early);

/* What its helper process is to get, and the descriptors of that, which are duplicated by
 * pg_heirs_start. `number` is the last word of the command. 0 or -errno. */
int pg_heir_equip(struct pg_heir *heir, int config_fd, int log_fd,
                  const struct pm_identity identities[2], const char *number);

/* What its limit is shared with; NULL: nobody. */
void pg_heir_share(struct pg_heir *heir, struct pg_budget *budget);

/* Have all there from now on that can be, and call `there` for each. Of the others a message says
 * why, if they are touched. 0 or -errno. */
int pg_heirs_start(void (*there)(uint64_t start, uint64_t end));

/* Whether nobody has touched it yet. */
int pg_heir_waits(const struct pg_heir *heir);

/* Its region, which is opened if nobody has touched it before. 0 or -errno, with a `text` if it is
 * known why. */
int pg_heir_region(struct pg_heir *heir, struct pg_region **region, char text[PG_TEXT]);

/* Unmap and free it, as pg_close and pg_drop do. */
int pg_heir_close(struct pg_heir *heir);
void pg_heir_drop(struct pg_heir *heir, int waiting);

/* region.c: the mapping, for the region that is opened there. */
void pg_heir_lend(struct pg_region *region, struct pg_heir *heir);

/* forks.c, around a fork: nobody changes anything meanwhile. In the child all heirs of the parent
 * become its own, and then each region that can, whose grave is marked. */
void pg_heirs_before_fork(void);
void pg_heirs_after_fork(void);
void pg_heirs_forked(void);
void pg_inherit(struct pg_region *region);

#endif

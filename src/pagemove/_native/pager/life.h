/* A region as a whole: how it is made, called, forked and ended. What region.h says of locks holds.
 */
#ifndef PAGEMOVE_PAGER_LIFE_H
#define PAGEMOVE_PAGER_LIFE_H

#include "pager/engine/region.h"

/* region.c: have all threads end; for one that has the descriptors. */
void pg_stop(struct pg_region *region);

/* region.c: pg_open, of what an heir has, or with NULL of a new one. */
struct pg_heir;
int pg_open_as(const struct pg_config *config, struct pg_heir *heir, struct pg_region **opened,
               char text[PG_TEXT]);

/* region.c, for one that is made anew in a forked child: as it is before it is opened; open it,
 * with its opening, 0 or -errno; and free what it was in the parent. */
void pg_begin_region(struct pg_region *region, const struct pg_config *config);
int pg_open_region(struct pg_region *region);
void pg_forget_region(struct pg_region *region);

/* setup.c: all that a region consists of, and its threads. */
int pg_set_up(struct pg_region *region, struct pg_opening *opening);

/* forks.c */

/* Make the region's sentinel, and have a forked child close it: none is forked in between that
 * would keep it open. Neither wants the lock. */
int pg_enter(struct pg_region *region);
void pg_leave(struct pg_region *region);

/* The same while threads of the region still run, which may have something to say. What is returned
 * is for pg_engine_end. */
struct pg_engine *pg_abandon(struct pg_region *region);

/* calls.c */

/* Wait for a flag that is set with the lock of calls, which is not held here, and with `asking` ask
 * the program now and then. 0, or -PG_INTERRUPTED: also in a child that was forked meanwhile. */
int pg_await(struct pg_region *region, const int *done, int asking);

int pg_start_caller(struct pg_region *region);
void pg_call_stop(struct pg_region *region);

/* plain.c: for one that has the descriptors. */
int pg_do_engage(struct pg_region *region);

/* Have a flush made without waiting for it; `saving` receives the result. 0 or -errno. */
struct pg_saving;
int pg_post_flush(struct pg_region *region, struct pg_saving *saving);

/* Have what others want back returned, without waiting for it. 0 or -errno. Needs no
 * lock, and takes none but that of calls. */
int pg_post_shrink(struct pg_region *region);

/* ending.c */

/* A flush that was asked for has ended: 0 or -errno. Needs no lock. */
void pg_note_saved(struct pg_saving *saving, const struct pg_region *region, int error);

/* In the child of a fork SIGTERM does what it does without us. */
void pg_ending_forked(void);

/* closed.c: as pg_above.mark_lost. */
void pg_mark_region_lost(struct pg_region *region, const char *line);

/* closed.c: have whoever touches the region from now on, and gets SIGSEGV, learn that it is closed;
 * and then leave its addresses to PROT_NONE, as they are already. The second may be called when the
 * helper has ended, or cannot be ended. */
int pg_dig(struct pg_region *region);
void pg_bury(struct pg_region *region, int is_ended);

/* forks.c: no child is forked in between, by one who knows. Before the lock of a region. */
void pg_hold_forks(void);
void pg_release_forks(void);

/* forks.c: for all regions of the process, while none can go. */
void pg_for_all_regions(void (*function)(struct pg_region *region, void *argument), void *argument);

#endif

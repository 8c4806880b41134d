/* The pager: memory whose blocks arrive from a store on first touch and can be taken away again.
 *
 * Never includes Python.h: nothing on the way of a fault can wait for the interpreter. Functions
 * return 0 or -errno unless they say otherwise; all but pg_open and pg_close may be called by any
 * thread at any time, but not by a thread that holds what a touching thread may need.
 */
#ifndef PAGEMOVE_PAGER_PAGER_H
#define PAGEMOVE_PAGER_PAGER_H

#include <stddef.h>
#include <stdint.h>

#include "pager/engine/asked.h"
#include "pager/mechanisms/budget.h"
#include "pager/mechanisms/codec.h"
#include "pager/mechanisms/config.h"
#include "pager/mechanisms/interruption.h"
#include "pager/mechanisms/trouble.h"
#include "pager/state/counters.h"
#include "pager/state/terms.h"

struct pg_region;
struct pg_stone;

/* Where the helper can say why it could not start, `text` does. */
int pg_open(const struct pg_config *config, struct pg_region **region, char text[PG_TEXT]);

/* Unmap and free. Changes that were not flushed are lost. In a forked child it only frees. The
 * region is not there for the program any more also if -PG_INTERRUPTED is returned. */
int pg_close(struct pg_region *region);

/* What comes before pg_close where arrays are left. From here on whoever touches the region gets
 * SIGSEGV, after a message that it was closed, and with `saves` all that was stored before is
 * saved. After pg_close it is still so, until pg_leave_closed. -errno: it is not closed; if
 * pg_lost, all but what could not be saved is done, and it may be tried again. -EBUSY: it is plain.
 */
int pg_seal(struct pg_region *region, int saves);

/* What is left there of one that was sealed; or NULL. */
struct pg_stone *pg_grave(const struct pg_region *region);

/* The last array has gone. In the process that has closed it. */
void pg_leave_closed(struct pg_stone *stone);

/* The same as pg_close without asking whether to wait. */
void pg_drop(struct pg_region *region, int waiting);

/* Read blocks of a range ahead; with `wait`, return when all are there, or the first has failed:
 * -EIO, and those behind it may be missing. */
int pg_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait);

/* Take blocks that touch the range away, changed ones after writing them back. */
int pg_evict(struct pg_region *region, uint64_t offset, uint64_t length);

/* pg_lacks_room, once what files keep for children that have ended has been given back. */
int pg_is_full(struct pg_region *region, uint64_t more, int zeros);

/* Have whole blocks of a region that was opened blank be zeros again, at once and whatever they
 * were: neither memory nor the store keeps anything of them. For memory that nobody uses any more.
 * Runs no signal handlers, and may be called with the interpreter's lock. -EBUSY: a block is
 * pinned, or the helper may still write to it; others may be zeros then. */
int pg_discard_blocks(struct pg_region *region, uint64_t offset, uint64_t length);

/* Have whole blocks of a region that was opened blank become others, which are zeros: their pages
 * and what the store has of them go there, and nothing is read. Nobody is to use either meanwhile.
 * Runs no signal handlers, and may be called with the interpreter's lock. How many, from the first
 * on; others are where they were, for they cannot leave, or are in a file. Or -errno. */
int pg_shift(struct pg_region *region, uint64_t to, uint64_t from, uint64_t length);

/* Serve a region that was opened `plain`, and evict from it, from now on; what is in it counts as
 * changed. Nothing if it is served already. Runs no signal handlers, and may be called with the
 * interpreter's lock. 0, or -errno: it is ordinary memory as before. */
int pg_engage(struct pg_region *region);

/* Not 0 until then; to be loaded atomically. */
const int *pg_plain_flag(const struct pg_region *region);

/* A bit for each block that an object has, all 0 at first: the others are not read ahead. To be
 * changed atomically, before such a block is discarded. NULL: no memory. */
uint64_t *pg_own_blocks(struct pg_region *region);

/* The pm_generation() of the forked process that the region goes on in; 0 in the first, and in a
 * child that does not have it. To be loaded atomically. */
const uint64_t *pg_carried_in(const struct pg_region *region);

/* Bring blocks in and have them stay until they are unpinned, as often as they were pinned. With
 * `write` a system call can write into them without a fault, and they count as dirty. -PG_NO_ROOM:
 * the limit does not allow it; -EIO: one cannot be read. Then nothing is pinned. */
int pg_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write);

/* The same to be read, and blocks prefetched with `wait`, without asking whether to wait: for
 * threads that must not need the interpreter. */
int pg_pin_unasked(struct pg_region *region, const struct pg_run *runs, size_t count);
int pg_prefetch_unasked(struct pg_region *region, uint64_t offset, uint64_t length);

/* Read blocks of runs that ascend, with as many reads under way as pay. With `wait`, return when
 * all are there, or the first has failed: -EIO, and others may be missing. Blocks that are there
 * count as used. Of more than pg_gatherable bytes the first may have left when the last arrive. */
int pg_gather(struct pg_region *region, const struct pg_run *runs, size_t count, int wait);

/* Make durable what was stored before. Blocks that cannot be written stay as they are. -PG_LOST: of
 * a region that is lost all is saved. */
int pg_flush(struct pg_region *region);

/* Flush all regions of the process whose stores outlive it, at once. Returns how many could not be
 * saved, or not in so many nanoseconds; which, a message says. */
unsigned pg_save_all(uint64_t nanoseconds);

/* Have SIGTERM save all regions, for so long at most, and then end the process as by default, in
 * which it differs from the default action only by that. 0 or -errno; -EBUSY: the process has a
 * handler of its own, and it is not one that was replaced before because of `replace`. */
int pg_save_on_sigterm(uint64_t nanoseconds, int replace);

/* Undo that, if it is still so. */
void pg_leave_sigterm(void);

/* What a store in a helper process, or compressed memory, says of itself; empty for a file. */
int pg_store_stats(struct pg_region *region, char text[PG_TEXT]);

#endif

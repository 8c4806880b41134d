/* What the program asks of a region that is answered at once, by its own thread. */
#ifndef PAGEMOVE_PAGER_ENGINE_ASKED_H
#define PAGEMOVE_PAGER_ENGINE_ASKED_H

#include <stddef.h>
#include <stdint.h>

#include "pager/state/counters.h"
#include "pager/state/terms.h"

struct pg_region;

uint64_t pg_address(const struct pg_region *region);

/* Whether faults raised inside the kernel (read(2) into the region) are served: they are not
 * where the process may only have UFFD_USER_MODE_ONLY. */
int pg_kernel_faults(const struct pg_region *region);

/* Whether the process that runs its store may run those of other regions. */
int pg_shares_helper(const struct pg_region *region);

/* Whether blocks leave by UFFDIO_MOVE; else by mremap, and arrive by copy. */
int pg_moves(const struct pg_region *region);

/* Whether the program has closed its descriptors: it raises SIGSEGV on access, all calls fail. */
int pg_lost(const struct pg_region *region);
const int *pg_lost_flag(const struct pg_region *region); /* to be loaded atomically */

/* As pg_pin says. */
void pg_unpin(struct pg_region *region, const struct pg_run *runs, size_t count);

/* Bytes that can be pinned at most, all together. */
uint64_t pg_pinnable(struct pg_region *region);

/* As pg_gather says. */
uint64_t pg_gatherable(struct pg_region *region);

void pg_counters(struct pg_region *region, struct pg_counters *counters);

/* Its number among the shares of its budget; 0: it has none. */
uint64_t pg_share_id(const struct pg_region *region);

/* The newest failures, oldest first; at most PG_FAILURES. Returns how many. */
size_t pg_failures(struct pg_region *region, struct pg_failure *failures);

/* What the store said of a failure that pg_failures has given; empty if it is too old. */
void pg_failure_text(struct pg_region *region, uint64_t sequence, char text[PG_TEXT]);

/* How a file is read. `queue`: by io_uring, 1; by threads, -errno says why; 0: all so far was in
 * the page cache, or a helper reads. `direct`: as pg_direct's state. */
struct pg_reading {
    int queue, direct;
    uint32_t alignment;
};
void pg_reading_of(const struct pg_region *region, struct pg_reading *reading);

/* Whether this thread may open a ring of io_uring: 0 or -errno. */
int pg_try_ring(void);

/* Read these blocks ahead, in this order. */
int pg_replay(struct pg_region *region, const uint32_t *numbers, uint32_t count);

/* Remember from now on in which order blocks are needed for the first time. */
int pg_record(struct pg_region *region);

/* Copy the order out, at most `most` of it. Returns how long it is. */
uint32_t pg_recorded(struct pg_region *region, uint32_t *numbers, uint32_t most);

/* Fault latency (counters.h). */
void pg_histogram(struct pg_region *region, uint64_t counts[PG_BUCKETS]);

/* Bytes of memory that the state of blocks takes. */
uint64_t pg_state_bytes(struct pg_region *region);

/* Whether blocks become dirty by a store alone: else they are made so where that is faster, and
 * what the counters say of it does not mean that anybody has written. */
void pg_set_stores_only(struct pg_region *region, int only);

/* Whether the store is compressed memory of this process. */
int pg_compresses(const struct pg_region *region);

/* Whether compressed memory, and what may be resident, have no room for so many bytes more, as far
 * as can be said from what it holds: of `zeros` they may take none. */
int pg_lacks_room(struct pg_region *region, uint64_t more, int zeros);

#endif

/* What the engine asks of those above it: the pool, the reactor, the calls of the program. A region
 * says by whom that is done. */
#ifndef PAGEMOVE_PAGER_ENGINE_ABOVE_H
#define PAGEMOVE_PAGER_ENGINE_ABOVE_H

#include <stdint.h>

struct pg_region;

struct pg_above {
    /* Of a region that shares its threads. */

    /* There is something for a worker. */
    void (*call_worker)(struct pg_region *region);

    /* Keep the region while a read of it is under way; and no longer, after which it may be gone.
     * 0, or -ESHUTDOWN: it is ending. */
    int (*hold)(struct pg_region *region);
    void (*release)(struct pg_region *region);

    /* Look at its jobs then. Wants the region's lock. */
    void (*arm)(struct pg_region *region, uint64_t when);

    /* Whether others wait for this thread. */
    int (*is_wanted)(struct pg_region *region);

    /* A worker leaves it, and has seen that there is nothing to do until then; with `again` others
     * come first. Wants the region's lock. */
    void (*worked)(struct pg_region *region, uint64_t due, int again);

    /* Of any. 0 or -errno. Needs no lock, and takes none but that of calls. */

    /* Save it, without being waited for. */
    int (*post_flush)(struct pg_region *region);

    /* Return what others of its budget want back, the same. */
    int (*post_shrink)(struct pg_region *region);

    /* Before it is PROT_NONE: whoever touches it then, and gets SIGSEGV, is told this line. Takes
     * the lock of all regions. */
    void (*mark_lost)(struct pg_region *region, const char *line);
};

#endif

#include "pager/above.h"

#include <stddef.h>

#include "pager/life.h"
#include "pager/shared.h"

static void call_worker(struct pg_region *region)
{
    pg_pool_put(region, PG_TASK_WORK);
}

static int is_wanted(struct pg_region *region)
{
    return pg_pool_is_wanted(region->engine);
}

static int post_flush(struct pg_region *region)
{
    return pg_post_flush(region, NULL);
}

const struct pg_above pg_above = {
    .call_worker = call_worker,
    .hold = pg_pool_hold,
    .release = pg_pool_release,
    .arm = pg_arm,
    .is_wanted = is_wanted,
    .worked = pg_pool_worked,
    .post_flush = post_flush,
    .post_shrink = pg_post_shrink,
    .mark_lost = pg_mark_region_lost,
};

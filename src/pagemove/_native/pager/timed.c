/* What the pool is to do for regions later. All want the lock of the engine. */
#include <stddef.h>

#include "pager/shared.h"

void pg_enter_timed(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;
    struct pg_share *share = &region->share;
    uint64_t due = share->work_due < share->sweep_due ? share->work_due : share->sweep_due;

    if (due == UINT64_MAX)
        return;
    if (!share->timed_link) {
        share->timed_next = engine->timed;
        share->timed_link = &engine->timed;
        if (engine->timed)
            engine->timed->share.timed_link = &share->timed_next;
        engine->timed = region;
    }
    if (due < engine->timed_due) {
        engine->timed_due = due;
        pthread_cond_signal(&engine->changed);
    }
}

void pg_leave_timed(struct pg_region *region)
{
    struct pg_share *share = &region->share;

    if (!share->timed_link)
        return;
    *share->timed_link = share->timed_next;
    if (share->timed_next)
        share->timed_next->share.timed_link = share->timed_link;
    share->timed_link = NULL;
}

void pg_look_at_timed(struct pg_engine *engine, uint64_t now)
{
    struct pg_region *region = engine->timed, *next;

    if (now < engine->timed_due)
        return;
    engine->timed_due = UINT64_MAX;
    for (; region; region = next) {
        struct pg_share *share = &region->share;
        next = share->timed_next;
        if (share->work_due <= now) {
            share->work_due = UINT64_MAX;
            pg_pool_queue(region, PG_TASK_WORK);
        }
        if (share->sweep_due <= now) {
            share->sweep_due = UINT64_MAX;
            pg_pool_queue(region, PG_TASK_SWEEP);
        }
        if (share->work_due == UINT64_MAX && share->sweep_due == UINT64_MAX)
            pg_leave_timed(region);
        else
            pg_enter_timed(region);
    }
}

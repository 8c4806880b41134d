/* What the program can have done by threads that have the descriptors of a region. */
#include <errno.h>
#include <stddef.h>

#include "pager/calls.h"
#include "pager/engine/arriving.h"
#include "pager/engine/faults.h"
#include "pager/engine/gather.h"
#include "pager/engine/lease.h"
#include "pager/engine/leaving.h"
#include "pager/engine/pin.h"
#include "pager/engine/work.h"
#include "pager/life.h"
#include "pager/mechanisms/compressed.h"
#include "pager/pager.h"

static int run(struct pg_region *region, const struct pg_call *wanted, char *text)
{
    return pg_run_call(region, wanted, text, 1);
}

static int flush(struct pg_region *region, struct pg_call *call)
{
    int error = pg_is_lost(region) ? -PG_LOST : pg_do_flush(region);

    (void)call;
    /* Also one that has ended because of that. */
    return error && pg_is_lost(region) ? pg_save_lost(region) : error;
}

static int evict(struct pg_region *region, struct pg_call *call)
{
    return pg_is_lost(region) ? -EBADF : pg_do_evict(region, call->offset, call->length);
}

static int prefetch(struct pg_region *region, struct pg_call *call)
{
    if (pg_is_plain(region))
        return 0; /* nothing of it is elsewhere */
    return pg_is_lost(region) ? -EBADF : pg_do_prefetch(region, call->offset, call->length, 1);
}

static int pin(struct pg_region *region, struct pg_call *call)
{
    /* It is to stay also when the region is engaged. */
    int error = pg_is_lost(region) ? -EBADF : pg_do_engage(region);

    return error ? error : pg_do_pin(region, call->runs, call->run_count, call->write);
}

/* What is pinned for nobody, nobody would unpin. */
static void unpin(struct pg_region *region, struct pg_call *call)
{
    pg_unpin(region, call->runs, call->run_count);
}

static int gather(struct pg_region *region, struct pg_call *call)
{
    if (pg_is_plain(region))
        return 0;
    return pg_is_lost(region) ? -EBADF
                              : pg_do_gather(region, call->runs, call->run_count, !call->posted);
}

static int store_stats(struct pg_region *region, struct pg_call *call)
{
    return pg_do_store_stats(region, call->text);
}

static int forget(struct pg_region *region, struct pg_call *call)
{
    return pg_is_lost(region) ? -EBADF : pg_do_forget(region, call->offset, call->length);
}

static int thaw(struct pg_region *region, struct pg_call *call)
{
    (void)call;
    if (!pg_is_lost(region))
        pg_compressed_thaw(region->store.compressed);
    return 0;
}

int pg_is_full(struct pg_region *region, uint64_t more, int zeros)
{
    if (!pg_lacks_room(region, more, zeros))
        return 0;
    if (!pg_compressed_spills(region->store.compressed) ||
        pg_run_call(region, &(struct pg_call){.function = thaw}, NULL, 0))
        return 1;
    return pg_lacks_room(region, more, zeros);
}

int pg_discard_blocks(struct pg_region *region, uint64_t offset, uint64_t length)
{
    int stored, error = pg_drop_blocks(region, offset, length, &stored);

    if (error || !stored)
        return error;
    /* Signal handlers are not run: the caller may be freeing an object. */
    return pg_run_call(
        region, &(struct pg_call){.function = forget, .offset = offset, .length = length}, NULL, 0);
}

static int engage(struct pg_region *region, struct pg_call *call)
{
    (void)call;
    return pg_is_lost(region) ? -EBADF : pg_do_engage(region);
}

int pg_engage(struct pg_region *region)
{
    if (!pg_is_plain(region))
        return 0;
    return pg_run_call(region, &(struct pg_call){.function = engage}, NULL, 0);
}

int pg_flush(struct pg_region *region)
{
    return run(region, &(struct pg_call){.function = flush}, NULL);
}

/* What was stored since the last flush, and until now, is saved too. */
static int seal(struct pg_region *region, struct pg_call *call)
{
    int error = pg_shut(region);

    if (!error && call->write)
        error = pg_save_lost(region);
    return error == -PG_LOST ? 0 : error;
}

int pg_seal(struct pg_region *region, int saves)
{
    int error = pg_is_plain(region) ? -EBUSY : pg_dig(region);

    return error ? error : run(region, &(struct pg_call){.function = seal, .write = saves}, NULL);
}

static int shrink(struct pg_region *region, struct pg_call *call)
{
    (void)call;
    pg_do_shrink(region);
    return 0;
}

int pg_post_flush(struct pg_region *region, struct pg_saving *saving)
{
    return pg_post_call(region,
                        &(struct pg_call){.function = flush, .posted = 1, .saving = saving});
}

int pg_post_shrink(struct pg_region *region)
{
    return pg_post_call(region, &(struct pg_call){.function = shrink, .posted = 1});
}

int pg_evict(struct pg_region *region, uint64_t offset, uint64_t length)
{
    return run(region, &(struct pg_call){.function = evict, .offset = offset, .length = length},
               NULL);
}

int pg_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait)
{
    /* To ask for blocks takes no descriptor, and should take no time. */
    if (!wait && !pg_is_plain(region))
        return pg_is_lost(region) ? -EBADF : pg_do_prefetch(region, offset, length, 0);
    return run(region, &(struct pg_call){.function = prefetch, .offset = offset, .length = length},
               NULL);
}

int pg_prefetch_unasked(struct pg_region *region, uint64_t offset, uint64_t length)
{
    return pg_run_call(region,
                       &(struct pg_call){.function = prefetch, .offset = offset, .length = length},
                       NULL, 0);
}

int pg_gather(struct pg_region *region, const struct pg_run *runs, size_t count, int wait)
{
    struct pg_call call = {.function = gather,
                           .runs = (struct pg_run *)runs,
                           .run_count = count,
                           .posted = !wait,
                           .hint = !wait};
    int error;

    if (pg_is_lost(region))
        return -EBADF;
    if (!pg_note_used(region, runs, count))
        return 0;
    if (wait)
        return run(region, &call, NULL);
    error = pg_post_call(region, &call);
    return error == -PG_NOT_NOW || error == -ESHUTDOWN ? 0 : error;
}

int pg_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write)
{
    return run(region,
               &(struct pg_call){.function = pin,
                                 .undo = unpin,
                                 .runs = (struct pg_run *)runs,
                                 .run_count = count,
                                 .write = write},
               NULL);
}

int pg_pin_unasked(struct pg_region *region, const struct pg_run *runs, size_t count)
{
    return pg_run_call(
        region,
        &(struct pg_call){.function = pin, .runs = (struct pg_run *)runs, .run_count = count}, NULL,
        0);
}

int pg_store_stats(struct pg_region *region, char text[PG_TEXT])
{
    return run(region, &(struct pg_call){.function = store_stats}, text);
}

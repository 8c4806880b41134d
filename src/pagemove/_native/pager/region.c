/* A region's life: opened, and closed. */
#define _GNU_SOURCE

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/above.h"
#include "pager/engine/choice.h"
#include "pager/engine/faults.h"
#include "pager/engine/lease.h"
#include "pager/engine/pin.h"
#include "pager/estate.h"
#include "pager/heirs.h"
#include "pager/inherited.h"
#include "pager/mechanisms/threads.h"
#include "pager/shared.h"

static void init_locks(struct pg_region *region)
{
    pthread_condattr_t monotonic;

    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&region->lock, NULL);
    pthread_cond_init(&region->changed, &monotonic);
    pthread_cond_init(&region->work, &monotonic);
    pthread_cond_init(&region->unrest, &monotonic);
    pthread_mutex_init(&region->calls_lock, NULL);
    pthread_cond_init(&region->called, &monotonic);
    pthread_cond_init(&region->answered, &monotonic);
    pthread_cond_init(&region->held, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void pg_stop(struct pg_region *region)
{
    uint64_t one = 1;

    pthread_mutex_lock(&region->lock);
    __atomic_store_n(&region->stop, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&region->work);
    pthread_cond_broadcast(&region->unrest);
    pg_store_stop(&region->store);
    /* Who waits for what is being read ahead learns that it is not. */
    if (region->engine)
        pg_pool_put(region, PG_TASK_WORK);
    pthread_mutex_unlock(&region->lock);
    if (region->wakeup >= 0 && write(region->wakeup, &one, sizeof one) < 0)
        return; /* an eventfd takes this always */
}

static void join_threads(struct pg_region *region)
{
    pthread_mutex_lock(&region->calls_lock);
    pthread_cond_broadcast(&region->called);
    pthread_mutex_unlock(&region->calls_lock);
    for (uint32_t i = 0; i < region->callers; i++)
        pthread_join(region->caller[i], NULL);
    for (uint32_t i = 0; i < region->threads; i++)
        pthread_join(region->thread[i], NULL);
    if (region->has_writer)
        pthread_join(region->writer, NULL);
    if (region->has_saver)
        pthread_join(region->saver, NULL);
}

/* Where an inherited region cannot be opened its addresses stay taken: there are arrays there. */
static int is_left_to_others(const struct pg_region *region)
{
    return (region->origin || region->former) && region->opening && region->opening->error;
}

/* A helper that is late may still copy a block to where the region was. So the addresses are given
 * back when it has ended; if it cannot be ended, never. Where an heir waits for a page it is told
 * the reason first (estate.c). */
static void unmap_region(struct pg_region *region)
{
    void *base = (void *)(uintptr_t)region->base;

    if (region->base && region->origin && is_left_to_others(region)) {
        pg_store_end(&region->store);
    } else if (region->base) {
        int kept, ended;
        /* A child that was forked in between would have it, and not reserve it. */
        pg_hold_forks();
        kept = mmap(base, region->length, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == base;
        if (kept)
            madvise(base, region->length, MADV_DONTFORK);
        pg_release_forks();
        /* A thread still waiting for a page learns that there is none: SIGSEGV. */
        if (kept)
            pg_wake(&region->uffd, region->base, region->length);
        ended = !pg_store_end(&region->store);
        if (region->grave)
            pg_bury(region, ended);
        else if (ended && !is_left_to_others(region))
            munmap(base, region->length);
        if (!kept)
            pg_wake(&region->uffd, region->base, region->length);
    }
}

static void tear_down(struct pg_region *region)
{
    unmap_region(region);
    pg_staging_free(&region->frames);
    pg_lease_end(region);
    pg_uffd_close(&region->uffd);
    pg_store_free(&region->store, 0);
    pg_store_free(&region->spill, 0);
}

/* What is left when its threads have ended, and it is in the list of all regions no more: who goes
 * through that needs the name of its store. */
void pg_forget_region(struct pg_region *region)
{
    pg_free_opening(region->opening);
    pg_record_free(&region->record);
    free(region->replayed);
    pg_jobs_free(&region->jobs);
    free(region->texts);
    pg_blocks_free(&region->blocks);
    pg_free_bits(region, region->spilled);
    pg_free_bits(region, region->owned);
    pg_ghosts_free(&region->policy);
    if (!region->engine)
        free(region->flights);
    pg_pins_free(region);
    free(region->spill_directory);
    free(region->store.label);
    free(region->spill.label);
    if (region->budget)
        pg_budget_release(region->budget);
    free(region);
}

/* Make it, and say so. 0; or -errno, also when nobody waits any more. */
static int open_here(struct pg_region *region)
{
    struct pg_opening *opening = region->opening;
    int error = pg_set_up(region, opening);

    /* So that what was made is seen by the reactor, which learns of a fault from the kernel. */
    pthread_mutex_lock(&region->lock);
    pthread_mutex_unlock(&region->lock);
    pthread_mutex_lock(&region->calls_lock);
    opening->error = error;
    opening->ended = 1;
    if (opening->given_up)
        error = -PG_INTERRUPTED;
    pthread_cond_broadcast(&region->answered);
    pthread_mutex_unlock(&region->calls_lock);
    if (error)
        pg_stop(region);
    return error;
}

int pg_finish(struct pg_region *region)
{
    int abandoned;

    join_threads(region);
    if (region->engine)
        pg_engine_displace(region);
    tear_down(region);
    pthread_mutex_lock(&region->calls_lock);
    region->ended = 1;
    abandoned = region->abandoned;
    pthread_cond_broadcast(&region->answered);
    pthread_mutex_unlock(&region->calls_lock);
    if (abandoned)
        pg_forget_region(region);
    return abandoned;
}

static void *live(void *argument)
{
    struct pg_region *region = argument;

    if (!open_here(region))
        pg_serve(region);
    if (region->flights)
        pg_ground(region->flights);
    pg_finish(region);
    return NULL;
}

void pg_open_shared(struct pg_region *region)
{
    if (!open_here(region))
        return;
    pthread_mutex_lock(&region->calls_lock);
    __atomic_store_n(&region->ending, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&region->calls_lock);
    pg_pool_close(region);
}

/* Wait for the last of its threads, which has ended it. */
static void join_last(struct pg_region *region)
{
    if (region->engine)
        pg_engine_await_gone(region);
    else
        pthread_join(region->root, NULL);
}

/* Free a region that nobody waits for, or have that done when its threads have ended. */
static void abandon(struct pg_region *region)
{
    pthread_t root = region->root;
    struct pg_engine *last = pg_abandon(region);
    int ended, shares = region->engine != NULL;

    pthread_mutex_lock(&region->calls_lock);
    ended = region->ended;
    region->abandoned = 1;
    pthread_mutex_unlock(&region->calls_lock);
    if (ended) {
        join_last(region);
        pg_forget_region(region);
    } else if (!shares) {
        pthread_detach(root);
    }
    pg_engine_end(last);
}

static void give_up_opening(struct pg_region *region)
{
    pthread_mutex_lock(&region->calls_lock);
    __atomic_store_n(&region->opening->given_up, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&region->calls_lock);
    /* It may be open by now. */
    pg_call_stop(region);
    abandon(region);
}

/* Have the engine open it. 0; -PG_INTERRUPTED, and it frees it; or -errno. */
static int open_with_others(struct pg_region *region)
{
    int error = pg_enter(region), interrupted;

    if (error)
        return error;
    error = pg_engine_pass(region);
    if (!error) {
        interrupted = pg_await(region, &region->opening->ended, 1);
        if (region->inherited)
            return interrupted;
        if (interrupted) {
            give_up_opening(region);
            return interrupted;
        }
        error = region->opening->error;
        if (error)
            pg_engine_await_gone(region);
    }
    if (error)
        pg_leave(region);
    return error;
}

/* Start its threads. The same. */
int pg_open_region(struct pg_region *region)
{
    const struct pg_config *config = &region->opening->config;
    int error, interrupted = 0;

    /* An inherited one has a userfaultfd of its own, with faults that wait. */
    region->shares = !region->origin && !config->helper && !config->compression && !config->taking;
    if (region->shares)
        return open_with_others(region);
    error = pg_enter(region);
    if (!error)
        error = pg_start_thread(&region->root, "pagemove-faults", live, region);
    if (!error) {
        /* The program closes its files when this returns. */
        pg_await(region, &region->opening->has_files, 0);
        /* Who opens an inherited one has no signal handlers to run. */
        interrupted = pg_await(region, &region->opening->ended, !region->origin && !region->former);
        if (region->inherited)
            return interrupted;
        error = interrupted ? 0 : region->opening->error;
        if (error)
            pthread_join(region->root, NULL);
    }
    if (region->watched >= 0)
        close(region->watched);
    if (interrupted)
        give_up_opening(region);
    else if (error)
        pg_leave(region);
    return interrupted ? interrupted : error;
}

void pg_begin_region(struct pg_region *region, const struct pg_config *config)
{
    *region = (struct pg_region){
        .uffd = {.region = -1, .staging = -1, .pagemap = -1, .empty = -1, .dumped = config->dumped},
        .store = {.fd = -1, .direct = {.fd = -1}, .past = {.fd = -1}},
        .spill = {.fd = -1, .direct = {.fd = -1}, .past = {.fd = -1}},
        .wakeup = -1,
        .sentinel = -1,
        .watched = -1,
        .above = &pg_above,
        .block_size = config->block_size,
        .nbytes = config->nbytes,
        .nblocks = (uint32_t)((config->nbytes + config->block_size - 1) / config->block_size),
        .mode = config->mode,
        .timeout = config->timeout_ns,
        .read_ahead = config->read_ahead,
        .writeback_interval = config->mode == PG_WRITE ? config->writeback_ns : 0,
        .outlives = config->outlives,
        .blank = config->blank,
        .remedy = (int)pg_remedy_of(config),
        .dumped = config->dumped,
    };
    pg_choice_init(region);
    if (config->budget)
        region->budget = pg_budget_hold(config->budget);
    init_locks(region);
}

int pg_open_as(const struct pg_config *config, struct pg_heir *heir, struct pg_region **opened,
               char text[PG_TEXT])
{
    uint64_t blocks = (config->nbytes + config->block_size - 1) / config->block_size;
    struct pg_region *region = calloc(1, sizeof *region);
    int error;

    text[0] = 0;
    if (!region)
        return -ENOMEM;
    pg_begin_region(region, config);
    if (heir)
        pg_heir_lend(region, heir);
    region->uffd.dumped = config->dumped;
    region->opening = pg_new_opening(config);
    error = !region->opening ? -ENOMEM : blocks < UINT32_MAX ? pg_open_region(region) : -EFBIG;
    if (error == -PG_INTERRUPTED)
        return error;
    if (region->opening)
        memcpy(text, region->opening->text, PG_TEXT);
    if (error) {
        pg_forget_region(region);
        return error;
    }
    /* What a child made by fork opens it with. */
    if (!config->again) {
        pg_free_opening(region->opening);
        region->opening = NULL;
    }
    __atomic_store_n(&region->carries, config->again && config->compression, __ATOMIC_RELEASE);
    *opened = region;
    return 0;
}

int pg_open(const struct pg_config *config, struct pg_region **opened, char text[PG_TEXT])
{
    return pg_open_as(config, NULL, opened, text);
}

enum { NOT_WAITING, WAITING, ASKING };

static int end(struct pg_region *region, int how)
{
    int interrupted;

    /* A forked child has neither the threads nor the mappings. */
    if (region->inherited) {
        pg_forget_region(region);
        return 0;
    }
    pg_call_stop(region);
    interrupted =
        how == NOT_WAITING ? -PG_INTERRUPTED : pg_await(region, &region->ended, how == ASKING);
    if (region->inherited)
        return interrupted;
    if (interrupted) {
        abandon(region);
        return interrupted;
    }
    join_last(region);
    pg_leave(region);
    pg_forget_region(region);
    return 0;
}

int pg_close(struct pg_region *region)
{
    return end(region, ASKING);
}

void pg_drop(struct pg_region *region, int waiting)
{
    end(region, waiting ? WAITING : NOT_WAITING);
}

/* A region's life: opened, and closed. */
#define _GNU_SOURCE
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "../uapi.h"
#include "channel.h"
#include "leaving.h"
#include "table.h"

enum { STACK = 256 << 10, MOST_SLOTS = 4096, LARGEST_READ = 2 << 20 };

static void init_locks(struct pg_region *region)
{
    pthread_condattr_t monotonic;

    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&region->lock, NULL);
    pthread_mutex_init(&region->flush_lock, NULL);
    pthread_cond_init(&region->changed, &monotonic);
    pthread_cond_init(&region->work, &monotonic);
    pthread_cond_init(&region->ending, &monotonic);
    pthread_mutex_init(&region->calls_lock, NULL);
    pthread_cond_init(&region->called, &monotonic);
    pthread_cond_init(&region->answered, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static uint64_t spilled_bytes(const struct pg_region *region)
{
    return (region->nblocks / 64 + 1) * sizeof *region->spilled;
}

static int map_region(struct pg_region *region, const char *name)
{
    uint64_t mode = PM_REGISTER_MODE_MISSING | PM_REGISTER_MODE_WP;
    int error;

    region->length = region->nblocks * region->block_size;
    region->base = pg_map_aligned(region->length, region->dumped);
    if (!region->base)
        return -errno;
    /* Without MADV_HUGEPAGE the touch of a missing page leaves an empty page table, and every huge
     * page that is moved there later is split (6.18.44: a pass over 1 GiB takes a quarter longer).
     */
    madvise((void *)(uintptr_t)region->base, region->length,
            region->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (name && *name)
        prctl(PM_PR_SET_VMA, PM_PR_SET_VMA_ANON_NAME, region->base, region->length, name);
    region->uffd.base = region->base;
    region->uffd.length = region->length;
    region->uffd.mode = mode;
    region->uffd.read_only = !pg_writable(region);
    region->uffd.advice = region->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    error = pg_register(region->uffd.region, region->base, region->length, mode);
    if (error || region->mode != PG_PRIVATE)
        return error;
    region->spilled = mmap(NULL, spilled_bytes(region), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region->spilled == MAP_FAILED) {
        region->spilled = NULL;
        return -errno;
    }
    return 0;
}

/* Blocks of one read: not so many that nothing is left for the others. */
static uint32_t most_at_once(const struct pg_region *region, uint64_t frames)
{
    uint64_t most = LARGEST_READ / region->block_size;

    most = most < PG_PIECES ? most : PG_PIECES;
    if (pg_has_helper(region) &&
        most > pg_channel_bytes(region->store.channel) / region->workers / region->block_size)
        most = pg_channel_bytes(region->store.channel) / region->workers / region->block_size;
    most = most < frames / 4 ? most : frames / 4;
    return most ? (uint32_t)most : 1;
}

static void count_frames(struct pg_region *region, uint64_t limit)
{
    uint64_t frames = limit / region->block_size;

    /* Slots count as well, so a limit that all blocks fit into can still be one. */
    region->limited = limit && frames < (uint64_t)region->nblocks + MOST_SLOTS;
    region->frames.limit = region->limited ? (uint32_t)frames : UINT32_MAX;
    /* A huge page cannot be given up in part, as is done where frames are few. */
    region->huge =
        region->block_size >= PG_HUGE_SIZE && !(pg_writable(region) && pg_is_tight(region));
}

void pg_share_out(struct pg_region *region)
{
    uint32_t frames = pg_frames_shared(region);

    pg_policy_init(region, frames);
    region->chunk_most = most_at_once(region, frames);
}

static int make_frames(struct pg_region *region)
{
    uint32_t frames = region->frames.limit, in_flight;
    int error;

    pg_share_out(region);
    /* What the event loop, the workers and callers hold, and what has been read ahead. */
    in_flight = 2 * region->window_most + 8 + region->workers;
    if (pg_has_helper(region))
        in_flight += region->workers * region->chunk_most;
    error = pg_frames_init(&region->frames, &region->uffd, region->block_size, frames,
                           (uint16_t)(region->standby_wanted + 4 * PG_BATCH + in_flight),
                           (uint16_t)(in_flight + PG_BATCH), region->huge);
    if (!error)
        error = pg_jobs_start(region);
    return error ? error : pg_policy_start(region);
}

int pg_start_thread(pthread_t *thread, const char *name, void *(*function)(void *), void *argument)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    int error;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    /* Signals are for the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = -pthread_create(thread, &attributes, function, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!error)
        pthread_setname_np(*thread, name);
    return error;
}

static int start_threads(struct pg_region *region)
{
    int error = pg_start_caller(region);

    while (!error && region->threads < region->workers) {
        error = pg_start_thread(&region->thread[region->threads], "pagemove-work", pg_work, region);
        region->threads += !error;
    }
    if (!error && region->writeback_interval) {
        error = pg_start_thread(&region->writer, "pagemove-write", pg_write_in_background, region);
        region->has_writer = !error;
    }
    return error;
}

/* Only what the pager is to have of the program's, and standard streams for a helper. */
static int own_table(const struct pg_region *region, const struct pg_config *config)
{
    int kept[8] = {region->watched}, count = 1;

    if (config->helper) {
        kept[count++] = config->helper->config_fd;
        kept[count++] = config->helper->log_fd;
        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
            if (fcntl(fd, F_GETFD) >= 0)
                kept[count++] = fd;
    } else {
        kept[count++] = config->fd;
    }
    return pg_own_table(kept, (size_t)count, region->watched);
}

static int start(struct pg_region *region, const struct pg_config *config, char text[PG_TEXT])
{
    int error = own_table(region, config);

    if (!error)
        error = pg_uffd_open(&region->uffd, config->moves, config->kernel_faults);
    if (!error)
        error = pg_store_init(&region->store, config, region->uffd.region, text);
    if (error)
        return error;
    region->workers = config->helper ? config->helper->lines : PG_WORKERS;
    if (region->workers > PG_LINES)
        region->workers = PG_LINES;
    region->flush_retryable = config->helper && config->helper->flush_retryable;
    if (config->helper)
        region->texts = calloc(PG_FAILURES, sizeof *region->texts);
    region->wakeup = eventfd(0, EFD_CLOEXEC);
    region->spill_directory = strdup(config->spill_directory ? config->spill_directory : "/tmp");
    if (region->wakeup < 0 || !region->spill_directory || (config->helper && !region->texts))
        return -errno;
    count_frames(region, config->limit);
    region->merging = pg_is_merging();
    error = map_region(region, config->name);
    if (!error && region->mode == PG_PRIVATE)
        error = pg_open_spill(region, text);
    if (!error)
        error = make_frames(region);
    if (!error)
        error = pg_blocks_init(&region->blocks, region->nblocks);
    return error ? error : start_threads(region);
}

void pg_stop(struct pg_region *region)
{
    uint64_t one = 1;

    pthread_mutex_lock(&region->lock);
    __atomic_store_n(&region->stop, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&region->work);
    pthread_cond_broadcast(&region->ending);
    if (region->store.channel)
        pg_channel_stop(region->store.channel);
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

/* A helper that is late may still copy a block to where the region was. So the addresses are given
 * back when it has ended; if it cannot be ended, never. */
static void unmap_region(struct pg_region *region)
{
    void *base = (void *)(uintptr_t)region->base;

    if (region->base) {
        int kept = mmap(base, region->length, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == base;
        /* A thread still waiting for a page learns that there is none: SIGSEGV. */
        if (kept)
            pg_wake(&region->uffd, region->base, region->length);
        if (!pg_store_end(&region->store))
            munmap(base, region->length);
        if (!kept)
            pg_wake(&region->uffd, region->base, region->length);
    }
}

static void tear_down(struct pg_region *region)
{
    unmap_region(region);
    pg_frames_free(&region->frames);
    pg_uffd_close(&region->uffd);
    pg_store_free(&region->store, 0);
    pg_store_free(&region->spill, 0);
}

/* Whoever opens a region waits for this. */
struct opening {
    struct pg_region *region;
    const struct pg_config *config;
    char *text;
    int ended, error;
};

static void *live(void *argument)
{
    struct opening *opening = argument;
    struct pg_region *region = opening->region;
    int error = start(region, opening->config, opening->text);

    pthread_mutex_lock(&region->calls_lock);
    opening->error = error;
    opening->ended = 1;
    pthread_cond_broadcast(&region->answered);
    pthread_mutex_unlock(&region->calls_lock);
    if (error)
        pg_stop(region);
    else
        pg_serve(region);
    join_threads(region);
    tear_down(region);
    return NULL;
}

/* What is left when its threads have ended. */
static void forget(struct pg_region *region)
{
    pg_record_free(region);
    free(region->replayed);
    free(region->jobs);
    free(region->texts);
    pg_blocks_free(&region->blocks);
    if (region->spilled)
        munmap(region->spilled, spilled_bytes(region));
    free(region->ghosts);
    pg_pins_free(region);
    free(region->spill_directory);
    free(region);
}

static int open_region(struct pg_region *region, const struct pg_config *config, char *text)
{
    struct opening opening = {.region = region, .config = config, .text = text};
    int error = pg_enter(region);

    if (!error)
        error = pg_start_thread(&region->root, "pagemove-faults", live, &opening);
    if (!error) {
        pthread_mutex_lock(&region->calls_lock);
        while (!opening.ended)
            pthread_cond_wait(&region->answered, &region->calls_lock);
        pthread_mutex_unlock(&region->calls_lock);
        error = opening.error;
        if (error)
            pthread_join(region->root, NULL);
    }
    if (region->watched >= 0)
        close(region->watched);
    if (error)
        pg_leave(region);
    return error;
}

int pg_open(const struct pg_config *config, struct pg_region **opened, char text[PG_TEXT])
{
    uint64_t blocks = (config->nbytes + config->block_size - 1) / config->block_size;
    struct pg_region *region = calloc(1, sizeof *region);
    int error;

    text[0] = 0;
    if (!region)
        return -ENOMEM;
    region->uffd = (struct pg_uffd){.region = -1, .staging = -1, .pagemap = -1, .empty = -1};
    region->store.fd = region->spill.fd = region->wakeup = region->sentinel = region->watched = -1;
    region->block_size = config->block_size;
    region->nbytes = config->nbytes;
    region->nblocks = (uint32_t)blocks;
    region->mode = config->mode;
    region->timeout = config->timeout_ns;
    region->read_ahead = config->read_ahead;
    region->writeback_interval = config->mode == PG_WRITE ? config->writeback_ns : 0;
    region->outlives = config->outlives;
    region->dumped = region->uffd.dumped = config->dumped;
    init_locks(region);
    error = blocks < UINT32_MAX ? open_region(region, config, text) : -EFBIG;
    if (error) {
        forget(region);
        return error;
    }
    *opened = region;
    return 0;
}

void pg_close(struct pg_region *region)
{
    /* A forked child has neither the threads nor the mappings. */
    if (!region->inherited) {
        pg_call_stop(region);
        pthread_join(region->root, NULL);
        pg_leave(region);
    }
    forget(region);
}

int pg_lost(const struct pg_region *region)
{
    return pg_is_lost(region);
}

uint64_t pg_address(const struct pg_region *region)
{
    return region->base;
}

int pg_moves(const struct pg_region *region)
{
    return region->uffd.moves;
}

int pg_kernel_faults(const struct pg_region *region)
{
    return !region->uffd.user_mode_only;
}

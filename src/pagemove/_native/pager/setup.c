/* What a region consists of, made by the thread that has its descriptors. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "pager/carried.h"
#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/lease.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/holes.h"
#include "pager/mechanisms/spilled.h"
#include "pager/mechanisms/table.h"
#include "pager/mechanisms/threads.h"
#include "pager/mechanisms/trace.h"
#include "pager/opening.h"
#include "pager/shared.h"
#include "uapi.h"

enum { MOST_SLOTS = 4096 };

static int map_region(struct pg_region *region, const char *name)
{
    uint64_t mode = PM_REGISTER_MODE_MISSING | PM_REGISTER_MODE_WP;
    int error = 0;

    region->length = region->nblocks * region->block_size;
    if (!region->base)
        region->base = pg_map_aligned(region->length, region->dumped);
    if (!region->base)
        return -errno;
    if (region->former)
        error = pg_clear_carried(region);
    if (error)
        return error;
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
    error = region->engine ? pg_engine_place(region) : 0;
    if (!error && region->plain)
        error = madvise((void *)(uintptr_t)region->base, region->length, MADV_DOFORK) ? -errno : 0;
    else if (!error && !region->origin)
        error = pg_register(region->uffd.region, region->base, region->length, mode);
    if (error || region->spilled || (region->mode != PG_PRIVATE && !region->blank))
        return error;
    region->spilled = pg_new_bits(region);
    return region->spilled ? 0 : -ENOMEM;
}

static void count_frames(struct pg_region *region, uint64_t limit)
{
    uint64_t frames = limit / region->block_size;

    /* Slots count as well, so a limit that all blocks fit into can still be one. */
    region->frames.limited =
        region->budget || (limit && frames < (uint64_t)region->nblocks + MOST_SLOTS);
    if (region->budget && frames > (uint64_t)region->nblocks + MOST_SLOTS)
        frames = (uint64_t)region->nblocks + MOST_SLOTS;
    region->frames_most = region->frames.limited ? (uint32_t)frames : UINT32_MAX;
    region->frames.limit = region->frames_most;
    /* A huge page cannot be given up in part, as is done where frames are few. */
    region->huge = region->block_size >= PG_HUGE_SIZE &&
                   !(pg_writable(region) && pg_is_tight(&region->frames));
}

static int make_frames(struct pg_region *region, struct pg_opening *opening)
{
    uint32_t in_flight;
    int error = 0;

    pg_share_out(region);
    if (!opening->config.rings)
        region->ring_state = -ENOSYS;
    error = pg_flights_start(region, region->engine ? &region->engine->flights : NULL);
    if (error)
        return error;
    /* What the event loop, the workers and callers hold, and what has been read ahead. */
    in_flight = 2 * region->policy.window_most + 8 + region->workers + region->most_flights;
    if (pg_has_helper(region))
        in_flight += region->workers * region->chunk_most;
    if (region->budget)
        error = pg_lease_start(region, &opening->given_up, opening->text);
    if (error)
        return error;
    error = pg_staging_init(&region->frames, &region->uffd, region->block_size,
                            (uint16_t)(region->policy.standby_wanted + 4 * PG_BATCH + in_flight),
                            (uint16_t)(in_flight + PG_BATCH), region->huge);
    /* What was shared out so far was the most there may be. */
    pg_share_out(region);
    if (!error)
        error = pg_jobs_init(&region->jobs,
                             region->frames.outgoing_slots + region->frames.incoming_slots);
    return error || !region->frames.limited ? error
                                            : pg_ghosts_init(&region->policy, region->frames_most);
}

static int start_threads(struct pg_region *region)
{
    int error = 0;

    /* Others of its budget may have a call for it already. */
    pthread_mutex_lock(&region->calls_lock);
    if (region->engine)
        region->is_open = 1;
    else
        error = pg_start_caller(region);
    pthread_mutex_unlock(&region->calls_lock);
    if (region->engine) {
        if (region->writeback_interval)
            pg_pool_sweep_at(region, pg_later(pg_now(), region->writeback_interval));
        return 0;
    }
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
    int kept[8 + PG_SPILLS] = {region->watched};
    size_t count = 1;
    const int door = config->helper ? config->helper->door_fd : -1;

    if (region->origin)
        kept[count++] = region->uffd.region;
    if (config->helper) {
        kept[count++] = config->helper->config_fd;
        kept[count++] = config->helper->log_fd;
        if (door >= 0)
            kept[count++] = door;
        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
            if (fcntl(fd, F_GETFD) >= 0)
                kept[count++] = fd;
    } else if (config->kept) {
        count += pg_spills_descriptors(pg_compressed_files(config->kept), kept + count);
    } else if (!config->compression && !config->taking) {
        kept[count++] = config->fd;
    }
    return pg_own_table(kept, count, region->watched);
}

int pg_say_closed(char text[PG_TEXT])
{
    snprintf(text, PG_TEXT,
             "the program has closed the descriptors that the library had just opened; open it "
             "after that");
    return -EBADF;
}

/* Whether what was kept is what was passed. Nobody can close it from now on. */
static int check_kept(struct pg_opening *opening, char *text)
{
    const struct pg_config *config = &opening->config;
    const struct pg_helper *helper = config->helper;
    int fds[] = {helper ? helper->config_fd : config->fd, helper ? helper->log_fd : -1};

    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (config->identities[i].inode == PM_NO_FILE || pm_is_still(fds[i], config->identities[i]))
            continue;
        return pg_say_closed(text);
    }
    /* Without it the region has a process of its own. */
    if (helper && helper->door_fd >= 0 && !pm_is_still(helper->door_fd, config->identities[2]))
        opening->helper.door_fd = -1;
    return 0;
}

/* Compressing is work for CPUs, but not for all of a large machine. */
static uint32_t count_cpus(void)
{
    cpu_set_t set;
    uint32_t count = sched_getaffinity(0, sizeof set, &set) ? 0 : (uint32_t)CPU_COUNT(&set);

    return count < PG_WORKERS ? PG_WORKERS : count > PG_COMPRESSORS ? PG_COMPRESSORS : count;
}

/* Have what the pager needs of the program's files in this thread's table. */
static int take_files(struct pg_region *region, struct pg_opening *opening)
{
    int error = 0;

    if (region->engine) {
        opening->config.fd = pg_engine_receive(region);
        return opening->config.fd < 0 ? opening->config.fd : 0;
    }
    error = own_table(region, &opening->config);
    pthread_mutex_lock(&region->calls_lock);
    opening->has_files = 1;
    pthread_cond_broadcast(&region->answered);
    pthread_mutex_unlock(&region->calls_lock);
    return error;
}

/* A userfaultfd and the store. */
static int open_both(struct pg_region *region, struct pg_opening *opening)
{
    const struct pg_config *config = &opening->config;
    int error = region->engine ? pg_engine_uffd(region, config->moves, config->kernel_faults)
                               : pg_uffd_open(&region->uffd, config->moves, config->kernel_faults);

    if (!error)
        error = pg_store_init(&region->store, config, region->uffd.region, opening->text);
    if (region->engine)
        close(config->fd); /* the store has a copy */
    if (error || region->engine)
        return error;
    region->wakeup = eventfd(0, EFD_CLOEXEC);
    return region->wakeup < 0 ? -errno : 0;
}

int pg_set_up(struct pg_region *region, struct pg_opening *opening)
{
    const struct pg_config *config = &opening->config;
    char *text = opening->text;
    int error = take_files(region, opening);

    if (error)
        return error;
    error = check_kept(opening, text);
    if (error && region->engine)
        close(config->fd);
    if (!error)
        error = open_both(region, opening);
    if (error)
        return error;
    region->store.waits = region->engine && pg_may_wait(region->store.fd);
    /* Looking for holes takes a lock of the file that write(2) holds. Only of a region that writes
     * the file is it ruled out that its memory is passed to write(2) for that file. */
    region->store.sparse =
        config->mode == PG_WRITE && region->store.fd >= 0 && pg_has_holes(region->store.fd);
    region->workers = config->helper        ? config->helper->lanes
                      : config->compression ? count_cpus()
                      : config->taking      ? PG_TAKERS
                                            : PG_WORKERS;
    if (region->workers > PG_LANES)
        region->workers = PG_LANES;
    region->flush_retryable = config->helper && config->helper->flush_retryable;
    if (region->store.said)
        region->texts = calloc(PG_FAILURES, sizeof *region->texts);
    region->spill_directory = strdup(config->spill_directory ? config->spill_directory : "/tmp");
    if (!region->spill_directory || (region->store.said && !region->texts))
        return -errno;
    count_frames(region, config->limit);
    /* Looking for what is in it takes an ioctl that is about as old as UFFDIO_MOVE. */
    region->plain = config->plain && region->blank && region->uffd.moves && !region->former;
    region->merging = pg_is_merging();
    error = map_region(region, config->name);
    if (!error && region->mode == PG_PRIVATE)
        error = pg_open_spill(region, text);
    region->spill.waits = region->engine && region->spill.fd >= 0 && pg_may_wait(region->spill.fd);
    if (!error)
        error = make_frames(region, opening);
    if (!error)
        error = pg_blocks_init(&region->blocks, region->nblocks);
    if (!error && region->former)
        error = pg_adopt_carried(region);
    if (error)
        return error;
    pg_trace_region(region->base, region->length, region->block_size, region->store.label);
    return start_threads(region);
}

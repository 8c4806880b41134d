/* An engine's life: begun with the first region over a file, ended with the last.
 *
 * Its threads have a file table of their own (table.c), into which the program's threads pass files
 * over a socket. The end that the program has is also the sentinel: when the program closes all its
 * descriptors, the engine notices, and all its regions are lost (lost.c). Regions that are opened
 * after that have another engine. */
#define _GNU_SOURCE
#include "pager/shared.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/mechanisms/table.h"
#include "pager/mechanisms/threads.h"
#include "pager/opening.h"

/* Which regions that are opened join. With the lock of all regions. */
static struct pg_engine *current;

/* Of all engines: that no thread knows a region any more. */
static pthread_mutex_t gone_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gone = PTHREAD_COND_INITIALIZER;

static struct pg_engine *new_engine(void)
{
    struct pg_engine *engine = calloc(1, sizeof *engine);
    pthread_condattr_t monotonic;

    if (!engine)
        return NULL;
    engine->sentinel = engine->watched = engine->wakeup = -1;
    engine->timed_due = engine->due = UINT64_MAX;
    for (int task = 0; task < PG_TASKS; task++)
        engine->queues[task].last = &engine->queues[task].first;
    engine->armed_last = &engine->armed;
    for (int kind = 0; kind < PG_KINDS; kind++)
        engine->kinds[kind] =
            (struct pg_uffd){.region = -1, .staging = -1, .pagemap = -1, .empty = -1};
    pthread_mutex_init(&engine->places_lock, NULL);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->changed, &monotonic);
    pthread_cond_init(&engine->left, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return engine;
}

static void free_engine(struct pg_engine *engine)
{
    free(engine->places);
    free(engine);
}

/* In the reactor: what all its threads need. 0 or -errno. */
static int begin(struct pg_engine *engine)
{
    int error;

    /* It takes the place of the standard streams too: what a C library or a sanitizer writes there
     * fails, and does not wait for somebody to read it. */
    shutdown(engine->watched, SHUT_WR);
    error = pg_own_table(&engine->watched, 1, engine->watched);
    if (error)
        return error;
    engine->wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->wakeup < 0)
        return -errno;
    pthread_mutex_lock(&engine->lock);
    error = pg_pool_spare(engine);
    pthread_mutex_unlock(&engine->lock);
    return error;
}

static void *live(void *argument)
{
    struct pg_engine *engine = argument;
    int error, detached;

    pg_inside = engine;
    pg_flights_init(&engine->flights);
    error = begin(engine);
    pthread_mutex_lock(&engine->lock);
    engine->error = error;
    engine->started = 1;
    pthread_cond_broadcast(&engine->left);
    pthread_mutex_unlock(&engine->lock);
    if (!error)
        pg_react(engine);
    pg_ground(&engine->flights);
    pg_pool_end(engine);
    pthread_mutex_lock(&engine->lock);
    detached = engine->detached;
    pthread_mutex_unlock(&engine->lock);
    if (detached)
        free_engine(engine);
    return NULL;
}

/* Until it has all that it needs of the program's: no I/O is waited for. */
static int start(struct pg_engine *engine)
{
    int error = pg_start_thread(&engine->reactor, "pagemove-faults", live, engine);

    if (error)
        return error;
    pthread_mutex_lock(&engine->lock);
    while (!engine->started)
        pthread_cond_wait(&engine->left, &engine->lock);
    error = engine->error;
    pthread_mutex_unlock(&engine->lock);
    if (error)
        pthread_join(engine->reactor, NULL);
    return error;
}

static int make_engine(struct pg_engine **made)
{
    struct pg_engine *engine = new_engine();
    struct pm_identity identity;
    int ends[2], error, watched;

    if (!engine)
        return -ENOMEM;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) {
        error = -errno;
        free_engine(engine);
        return error;
    }
    engine->watched = watched = pm_keep(ends[0]);
    engine->sentinel = pm_keep(ends[1]);
    engine->sentinel_identity = pm_identify(engine->sentinel);
    identity = pm_identify(watched);
    error = watched < 0 ? watched : engine->sentinel < 0 ? engine->sentinel : start(engine);
    if (watched >= 0)
        pm_close(watched, identity);
    if (error) {
        pm_close(engine->sentinel, engine->sentinel_identity);
        free_engine(engine);
        return error;
    }
    *made = engine;
    return 0;
}

int pg_engine_enter(struct pg_region *region)
{
    int error = 0;

    if (!current || !pm_is_still(current->sentinel, current->sentinel_identity))
        error = make_engine(&current);
    if (error) {
        current = NULL;
        return error;
    }
    current->members++;
    region->engine = current;
    region->share.work_due = region->share.sweep_due = UINT64_MAX;
    pthread_mutex_lock(&current->lock);
    current->regions++;
    region->share.id = ++current->ids;
    pthread_mutex_unlock(&current->lock);
    return 0;
}

struct pg_engine *pg_engine_leave(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;
    pthread_t reactor = engine->reactor;
    int detached;

    if (--engine->members)
        return NULL;
    if (current == engine)
        current = NULL;
    pm_close(engine->sentinel, engine->sentinel_identity);
    pthread_mutex_lock(&engine->lock);
    engine->detached = detached = engine->regions != 0;
    engine->retired = 1;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
    if (!detached)
        return engine;
    pthread_detach(reactor);
    return NULL;
}

void pg_engine_end(struct pg_engine *engine)
{
    if (!engine)
        return;
    pthread_join(engine->reactor, NULL);
    free_engine(engine);
}

void pg_engine_close_sentinel(struct pg_engine *engine)
{
    if (engine->sentinel >= 0)
        pm_close(engine->sentinel, engine->sentinel_identity);
    engine->sentinel = -1;
}

void pg_engine_forked(void)
{
    current = NULL;
    pthread_mutex_init(&gone_lock, NULL);
    pthread_cond_init(&gone, NULL);
}

/* No file is awaited for it any more. Wants the engine's lock. */
static void forget_opening(struct pg_region *region)
{
    struct pg_region **at = &region->engine->openings;

    while (*at && *at != region)
        at = &(*at)->share.opening_next;
    if (*at)
        *at = region->share.opening_next;
}

/* Take back what pg_engine_enter has counted. */
static void cancel(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;

    pthread_mutex_lock(&engine->lock);
    forget_opening(region);
    engine->regions--;
    pthread_mutex_unlock(&engine->lock);
}

static int send_file(struct pg_engine *engine, uint64_t id, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] __attribute__((aligned(8))) = {0};
    struct iovec bytes = {&id, sizeof id};
    struct msghdr message = {.msg_iov = &bytes,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    while (sendmsg(engine->sentinel, &message, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

int pg_engine_pass(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;
    int error = -EBADF;

    region->unopened = 1;
    region->share.passed = -EBADF;
    pthread_mutex_lock(&engine->lock);
    region->share.opening_next = engine->openings;
    engine->openings = region;
    pthread_mutex_unlock(&engine->lock);
    if (pm_is_still(engine->sentinel, engine->sentinel_identity))
        error = send_file(engine, region->share.id, region->opening->config.fd);
    if (error) {
        if (error == -EBADF || error == -ENOTSOCK || error == -EPIPE)
            error = pg_say_closed(region->opening->text);
        cancel(region);
        return error;
    }
    pg_pool_put(region, PG_TASK_CALL);
    return 0;
}

/* One message. 0: there is none. Wants the engine's lock. */
static int take_file(struct pg_engine *engine)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    uint64_t id = 0;
    struct iovec bytes = {&id, sizeof id};
    struct msghdr message = {.msg_iov = &bytes,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t got = recvmsg(engine->watched, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    struct pg_region *region = engine->openings;
    int fd = -EMFILE; /* the kernel leaves out what there is no number for */

    if (got <= 0)
        return got < 0 && errno == EINTR;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    while (region && region->share.id != id)
        region = region->share.opening_next;
    if (region)
        region->share.passed = fd;
    else if (fd >= 0)
        close(fd); /* of one that nobody waits for */
    return 1;
}

int pg_engine_receive(struct pg_region *region)
{
    struct pg_engine *engine = region->engine;

    pthread_mutex_lock(&engine->lock);
    while (take_file(engine))
        ;
    forget_opening(region);
    pthread_mutex_unlock(&engine->lock);
    return region->share.passed;
}

void pg_engine_await_gone(struct pg_region *region)
{
    pthread_mutex_lock(&gone_lock);
    while (!region->share.gone)
        pthread_cond_wait(&gone, &gone_lock);
    pthread_mutex_unlock(&gone_lock);
}

void pg_engine_note_gone(struct pg_region *region)
{
    pthread_mutex_lock(&gone_lock);
    region->share.gone = 1;
    pthread_cond_broadcast(&gone);
    pthread_mutex_unlock(&gone_lock);
}

int pg_engine_uffd(struct pg_region *region, int moves, int kernel_faults)
{
    struct pg_engine *engine = region->engine;
    int kind = 2 * (moves != 0) + (kernel_faults != 0), error = 0;

    pthread_mutex_lock(&engine->lock);
    if (!engine->has_kind[kind]) {
        error = pg_uffd_open(&engine->kinds[kind], moves, kernel_faults);
        engine->has_kind[kind] = !error;
        pg_wake_reactor(engine, 1);
    }
    if (!error) {
        region->uffd = engine->kinds[kind];
        region->uffd.shared = 1;
        region->uffd.dumped = region->dumped;
    }
    pthread_mutex_unlock(&engine->lock);
    return error;
}

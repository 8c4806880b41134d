#define _GNU_SOURCE
#include "pager/mechanisms/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/mechanisms/helper.h"
#include "pager/mechanisms/host.h"
#include "pager/mechanisms/mail.h"

/* ns: a store that is to be tried once only still needs time to answer. */
#define LEAST_PATIENCE UINT64_C(1000000000)

uint64_t pg_channel_bytes(const struct pg_channel *channel)
{
    return channel->count * channel->buffer_size;
}

int pg_channel_shares(const struct pg_channel *channel)
{
    return __atomic_load_n(&channel->shares, __ATOMIC_RELAXED);
}

uint64_t pg_channel_restarts(const struct pg_channel *channel)
{
    return __atomic_load_n(&channel->restarts, __ATOMIC_RELAXED);
}

void pg_free_arguments(char **argv)
{
    for (char **argument = argv; argument && *argument; argument++)
        free(*argument);
    free(argv);
}

char **pg_copy_arguments(const char *const *argv)
{
    size_t count = 0;
    char **copy;

    while (argv[count])
        count++;
    copy = calloc(count + 1, sizeof *copy);
    for (size_t i = 0; copy && i < count; i++) {
        copy[i] = strdup(argv[i]);
        if (!copy[i]) {
            pg_free_arguments(copy);
            return NULL;
        }
    }
    return copy;
}

static int *no_descriptors(size_t count)
{
    int *descriptors = malloc(count * sizeof *descriptors);

    for (size_t i = 0; descriptors && i < count; i++)
        descriptors[i] = -1;
    return descriptors;
}

static struct pg_lane *make_lanes(size_t count)
{
    struct pg_lane *lanes = calloc(count, sizeof *lanes);

    for (size_t i = 0; lanes && i < count; i++)
        lanes[i].socket = -1;
    return lanes;
}

static void init_locks(struct pg_channel *channel)
{
    pthread_condattr_t monotonic;

    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&channel->lock, NULL);
    pthread_cond_init(&channel->freed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

/* A store could make the file shorter: then this process would get SIGBUS. */
static int map_letters(struct pg_channel *channel)
{
    uint64_t buffers = pg_channel_bytes(channel);
    void *letters;

    if (ftruncate(channel->memfd, (off_t)(buffers + pg_mail_bytes())) ||
        fcntl(channel->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return -errno;
    letters = mmap(NULL, pg_mail_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, channel->memfd,
                   (off_t)buffers);
    if (letters == MAP_FAILED)
        return -errno;
    channel->letters = letters;
    return 0;
}

static int open_files(struct pg_channel *channel, const struct pg_helper *helper)
{
    channel->config = fcntl(helper->config_fd, F_DUPFD_CLOEXEC, 3);
    if (channel->config < 0)
        return -errno;
    channel->log = fcntl(helper->log_fd, F_DUPFD_CLOEXEC, 3);
    if (channel->log < 0)
        return -errno;
    channel->memfd =
        pg_above_standard(memfd_create("pagemove helper", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (channel->memfd < 0)
        return channel->memfd;
    return map_letters(channel);
}

int pg_channel_open(const struct pg_helper *helper, int region, uint64_t timeout_ns,
                    struct pg_channel **opened, char text[PG_TEXT])
{
    struct pg_channel *channel = calloc(1, sizeof *channel);
    int error;

    text[0] = 0;
    if (!channel)
        return -ENOMEM;
    init_locks(channel);
    channel->count = helper->lanes < PG_LANES ? helper->lanes : PG_LANES;
    channel->buffer_size = helper->buffer_size;
    channel->region = region;
    channel->timeout = timeout_ns > LEAST_PATIENCE ? timeout_ns : LEAST_PATIENCE;
    channel->restarts_left = helper->restarts;
    channel->restartable = helper->restarts > 0;
    channel->given_up = helper->given_up;
    channel->control = channel->config = channel->log = channel->memfd = channel->process = -1;
    channel->leaving = -1;
    channel->door = helper->door_fd;
    channel->door_is_new = helper->door_is_new;
    if (helper->host)
        channel->host = pg_host_hold(helper->host);
    channel->lanes = make_lanes(channel->count);
    channel->sockets = no_descriptors(channel->count);
    channel->argv = pg_copy_arguments(helper->argv);
    error =
        channel->lanes && channel->sockets && channel->argv ? open_files(channel, helper) : -ENOMEM;
    if (!error)
        error = pg_helper_start(channel, text);
    /* It leads to the first helper only, which ends when nobody has a way to it any more. */
    if (channel->door >= 0)
        close(channel->door);
    channel->door = -1;
    if (error) {
        pg_channel_close(channel, 0);
        return error;
    }
    channel->generation = 1;
    channel->given_up = NULL; /* the opener may be gone when another one is started */
    *opened = channel;
    return 0;
}

void pg_channel_stop(struct pg_channel *channel)
{
    pthread_mutex_lock(&channel->lock);
    __atomic_store_n(&channel->stopping, 1, __ATOMIC_RELAXED);
    if (channel->starting && channel->control >= 0)
        shutdown(channel->control, SHUT_RDWR);
    for (uint32_t i = 0; i < channel->count; i++)
        if (channel->lanes[i].socket >= 0)
            shutdown(channel->lanes[i].socket, SHUT_RDWR);
    pthread_cond_broadcast(&channel->freed);
    pthread_mutex_unlock(&channel->lock);
}

void pg_channel_forget(struct pg_channel *channel)
{
    for (uint32_t i = 0; i < channel->count; i++) {
        if (channel->lanes && channel->lanes[i].socket >= 0)
            close(channel->lanes[i].socket);
        if (channel->sockets && channel->sockets[i] >= 0)
            close(channel->sockets[i]);
    }
    if (channel->control >= 0)
        close(channel->control);
    if (channel->leaving >= 0)
        close(channel->leaving);
    if (channel->process >= 0)
        close(channel->process);
    channel->control = channel->leaving = channel->process = -1;
    channel->count = 0;
}

int pg_channel_end(struct pg_channel *channel)
{
    int error;

    pg_join_starter(channel);
    error = pg_helper_end(channel);
    /* Once is long enough to wait. */
    if (error) {
        close(channel->process);
        channel->process = -1;
    }
    return error;
}

void pg_channel_close(struct pg_channel *channel, int inherited)
{
    if (!inherited)
        pg_channel_end(channel);
    pg_channel_forget(channel);
    if (channel->letters)
        munmap(channel->letters, pg_mail_bytes());
    if (channel->memfd >= 0)
        close(channel->memfd);
    if (channel->config >= 0)
        close(channel->config);
    if (channel->log >= 0)
        close(channel->log);
    pg_free_arguments(channel->argv);
    free(channel->lanes);
    free(channel->sockets);
    pg_host_leave(channel);
    if (channel->host)
        pg_host_release(channel->host);
    free(channel);
}

#define _GNU_SOURCE
#include "pager/mechanisms/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/helper.h"
#include "pager/mechanisms/host.h"
#include "pager/mechanisms/mail.h"
#include "pager/mechanisms/store.h"

/* ns: a store that is to be tried once only still needs time to answer. */
#define LEAST_PATIENCE UINT64_C(1000000000)

/* ns that a helper has to say why it has ended; between looks. */
#define REASON UINT64_C(50000000)
#define LOOK UINT64_C(1000000)

/* A request that nobody gets any more need not be made: its socket is closed at the other end. */
static int is_gone(const struct pg_lane *lane)
{
    char byte;
    ssize_t got = recv(lane->socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return !got || (got < 0 && errno != EAGAIN && errno != EINTR);
}

static void post(struct pg_channel *channel, struct pg_lane *lane, struct pg_errand request,
                 int quietly)
{
    lane->number = pg_mail_ask(&channel->letters[lane - channel->lanes], &request, lane->generation,
                               lane->number, quietly);
}

/* 0: `said` is 0 or -errno; else as pg_helper_receive, or -PG_NOT_ASKED. */
static int ask(struct pg_channel *channel, struct pg_lane *lane, struct pg_errand request,
               int *said, char text[PG_TEXT])
{
    const struct pg_letter *letter = &channel->letters[lane - channel->lanes];
    int status;

    if (is_gone(lane))
        return -PG_NOT_ASKED;
    post(channel, lane, request, 0);
    status = pg_helper_receive(lane->socket, pg_now() + channel->timeout, said, text);
    /* A process takes milliseconds to end, and its sockets are closed last. */
    return status == -PG_GONE && !pg_mail_taken(letter, lane->number) ? -PG_NOT_ASKED : status;
}

/* Where in the memfd a lane's bytes are. */
static uint64_t buffer_of(const struct pg_channel *channel, const struct pg_lane *lane)
{
    return (uint64_t)(lane - channel->lanes) * channel->buffer_size;
}

/* Copy between pieces, from byte `from` of them on, and the lane's buffer. */
static int exchange(const struct pg_channel *channel, const struct pg_lane *lane, int to_buffer,
                    const struct pg_piece *pieces, uint64_t from, uint64_t length)
{
    uint64_t at = buffer_of(channel, lane);

    for (; length; pieces++) {
        uint64_t here = pieces->length > from ? pieces->length - from : 0;
        char *address = (char *)pieces->address + from;
        here = here < length ? here : length;
        from = here ? 0 : from - pieces->length;
        for (uint64_t done = 0; done < here;) {
            ssize_t n =
                to_buffer ? pwrite(channel->memfd, address + done, here - done, (off_t)(at + done))
                          : pread(channel->memfd, address + done, here - done, (off_t)(at + done));
            if (n <= 0)
                return n ? -errno : -EIO;
            done += (uint64_t)n;
        }
        at += here;
        length -= here;
    }
    return 0;
}

static uint64_t total_length(const struct pg_piece *pieces, size_t count)
{
    uint64_t total = 0;

    for (size_t i = 0; i < count; i++)
        total += pieces[i].length;
    return total;
}

/* One whose sockets a store has closed says so a moment after that, when the store returns. */
static void await_reason(const struct pg_channel *channel, const struct pg_lane *lane)
{
    uint64_t until = pg_now() + REASON;

    while (!pg_mail_is_cut_off(channel->letters, lane->generation) && pg_now() < until &&
           !__atomic_load_n(&channel->stopping, __ATOMIC_RELAXED))
        pg_sleep(LOOK);
}

/* What cannot come from the helper itself. */
static void explain(const struct pg_channel *channel, const struct pg_lane *lane, int status,
                    char text[PG_TEXT])
{
    if (!status)
        return;
    strcpy(text, status == -PG_NO_ANSWER ? "the helper process that runs the store does not answer"
                                         : "the helper process that runs the store has ended");
    if (status != -PG_NO_ANSWER && pg_mail_is_cut_off(channel->letters, lane->generation))
        strcat(text, PG_CUT_OFF);
}

int pg_channel_call(struct pg_channel *channel, int operation, uint64_t offset,
                    const struct pg_piece *pieces, size_t count, char text[PG_TEXT])
{
    uint64_t total = total_length(pieces, count), done = 0, part;
    struct pg_lane *lane;
    int status = 0, error;

    text[0] = 0;
    error = pg_take_lane(channel, operation, offset, total, &lane, text);
    if (error)
        return error;
    for (;;) {
        part = total - done < channel->buffer_size ? total - done : channel->buffer_size;
        if (operation == PG_OP_WRITE)
            error = exchange(channel, lane, 1, pieces, done, part);
        if (!error)
            status = ask(channel, lane,
                         (struct pg_errand){(uint32_t)operation, 0, offset + done, part, 0}, &error,
                         text);
        if (!error && !status && operation == PG_OP_READ)
            error = exchange(channel, lane, 0, pieces, done, part);
        if (error || status || done + part >= total)
            break;
        done += part;
    }
    if (status == -PG_GONE)
        await_reason(channel, lane);
    explain(channel, lane, status, text);
    pg_return_lane(channel, lane, status, offset + done, part);
    return status ? status : error;
}

int pg_channel_ask(struct pg_channel *channel, uint64_t offset, uint64_t length, uint64_t address,
                   int protect, struct pg_lane **asked)
{
    struct pg_errand request = {PG_OP_READ, (uint32_t)protect, offset, length, address};

    *asked = NULL;
    if (length > channel->buffer_size || pthread_mutex_trylock(&channel->lock))
        return -PG_NOT_NOW;
    *asked = pg_free_lane(channel, PG_OP_READ, offset, length);
    if (*asked)
        post(channel, *asked, request, 1);
    pthread_mutex_unlock(&channel->lock);
    return *asked ? 0 : -PG_NOT_NOW;
}

int pg_lane_is_done(const struct pg_channel *channel, const struct pg_lane *lane)
{
    return pg_mail_answered(&channel->letters[lane - channel->lanes], lane->number);
}

int pg_lane_listen(struct pg_channel *channel, const struct pg_lane *lane)
{
    return pg_mail_listen(&channel->letters[lane - channel->lanes], lane->number);
}

int pg_lane_descriptor(const struct pg_lane *lane)
{
    return lane->socket;
}

int pg_channel_answer(struct pg_channel *channel, struct pg_lane *lane, int *said,
                      char text[PG_TEXT])
{
    int status;

    if (pg_lane_is_done(channel, lane)) {
        *said = 0;
        text[0] = 0;
        pg_return_lane(channel, lane, 0, lane->offset, lane->length);
        return 0;
    }
    status = pg_helper_receive(lane->socket, 0, said, text);
    explain(channel, lane, status, text);
    if (status == -PG_NO_ANSWER)
        return status;
    if (status)
        *said = status;
    pg_return_lane(channel, lane, status, lane->offset, lane->length);
    return 0;
}

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

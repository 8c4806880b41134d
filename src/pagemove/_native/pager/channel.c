#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "helper.h"
#include "region.h"

enum { STUCK_LOOK_MS = 10 };

/* ns: a store that is to be tried once only still needs time to answer. */
#define LEAST_PATIENCE UINT64_C(1000000000)

/* With an address, what has been read is copied there by the helper itself. */
struct request {
    uint32_t operation, protect;
    uint64_t offset, length, address;
};

/* Only for the thread that note_death has made. */
static int start_again(struct pg_channel *channel, char text[PG_TEXT])
{
    pg_helper_end(channel);
    for (uint32_t i = 0; i < channel->count; i++) {
        /* Lines that have not been used have theirs here. */
        if (channel->sockets[i] >= 0)
            close(channel->sockets[i]);
        channel->sockets[i] = -1;
    }
    if (channel->restarts_left-- <= 0)
        return -EPIPE;
    __atomic_add_fetch(&channel->restarts, 1, __ATOMIC_RELAXED);
    return pg_helper_start(channel, text);
}

static void *replace_helper(void *argument)
{
    struct pg_channel *channel = argument;
    char text[PG_TEXT];
    int error = start_again(channel, text);

    pthread_mutex_lock(&channel->lock);
    channel->generation += !error;
    channel->dead = -error;
    channel->starting = 0;
    pthread_cond_broadcast(&channel->freed);
    pthread_mutex_unlock(&channel->lock);
    return NULL;
}

/* Wait for the thread that starts another helper, if there ever was one. */
static void join_starter(struct pg_channel *channel)
{
    if (channel->has_starter)
        pthread_join(channel->starter, NULL);
    channel->has_starter = 0;
}

/* The helper of a generation has ended: start another, if that is still allowed. A thread of its
 * own does, for that takes a while; others wait for a line meanwhile, and no longer than they may.
 */
static void note_death(struct pg_channel *channel, unsigned generation)
{
    int error;

    if (channel->dead || channel->stopping || channel->starting ||
        channel->generation != generation)
        return;
    join_starter(channel); /* has ended: nothing is being started */
    channel->starting = 1;
    error = pg_start_thread(&channel->starter, "pagemove-helper", replace_helper, channel);
    channel->has_starter = !error;
    if (error) {
        channel->dead = -error;
        channel->starting = 0;
    }
}

/* Late answers make stuck lines free again. */
static void look_at_stuck(struct pg_channel *channel)
{
    char text[PG_TEXT];

    for (uint32_t i = 0; i < channel->count; i++) {
        struct pg_line *line = &channel->lines[i];
        if (line->state == PG_STUCK && (line->generation != channel->generation ||
                                        pg_helper_receive(line->socket, 0, text) != -ETIMEDOUT))
            line->state = PG_FREE;
    }
}

static struct pg_line *free_line(struct pg_channel *channel)
{
    for (uint32_t i = 0; i < channel->count; i++)
        if (channel->lines[i].state == PG_FREE)
            return &channel->lines[i];
    return NULL;
}

/* Make a free line the caller's, on a socket of the present helper. */
static void use(struct pg_channel *channel, struct pg_line *line)
{
    uint32_t i = (uint32_t)(line - channel->lines);

    if (line->generation != channel->generation) {
        if (line->socket >= 0)
            close(line->socket);
        line->socket = channel->sockets[i];
        channel->sockets[i] = -1;
        line->generation = channel->generation;
    }
    line->state = PG_BUSY;
}

/* A line for this thread alone. 0 or -errno. */
static int take_line(struct pg_channel *channel, uint64_t deadline, struct pg_line **taken)
{
    struct pg_line *line = NULL;
    int error = 0;

    pthread_mutex_lock(&channel->lock);
    while (!error && !line) {
        look_at_stuck(channel);
        line = channel->starting ? NULL : free_line(channel);
        if (channel->stopping)
            error = -ESHUTDOWN;
        else if (channel->dead)
            error = -channel->dead;
        else if (!line && pg_now() >= deadline)
            error = -ETIMEDOUT;
        else if (!line) {
            uint64_t look = pg_now() + STUCK_LOOK_MS * UINT64_C(1000000);
            struct timespec at = {(time_t)(look / 1000000000), (long)(look % 1000000000)};
            pthread_cond_timedwait(&channel->freed, &channel->lock, &at);
        }
    }
    if (!error) {
        use(channel, line);
        *taken = line;
    }
    pthread_mutex_unlock(&channel->lock);
    return error;
}

static void give_line(struct pg_channel *channel, struct pg_line *line, int error)
{
    pthread_mutex_lock(&channel->lock);
    line->state = error == -ETIMEDOUT ? PG_STUCK : PG_FREE;
    if (error == -EPIPE)
        note_death(channel, line->generation);
    pthread_cond_signal(&channel->freed);
    pthread_mutex_unlock(&channel->lock);
}

static int ask(struct pg_channel *channel, const struct pg_line *line, struct request request,
               char text[PG_TEXT])
{
    if (send(line->socket, &request, sizeof request, MSG_NOSIGNAL) < 0)
        return errno == ECONNRESET ? -EPIPE : -errno;
    return pg_helper_receive(line->socket, pg_now() + channel->timeout, text);
}

/* Where in the memfd a line's bytes are. */
static uint64_t buffer_of(const struct pg_channel *channel, const struct pg_line *line)
{
    return (uint64_t)(line - channel->lines) * channel->buffer_size;
}

/* Copy between pieces, from byte `from` of them on, and the line's buffer. */
static int exchange(const struct pg_channel *channel, const struct pg_line *line, int to_buffer,
                    const struct pg_piece *pieces, uint64_t from, uint64_t length)
{
    uint64_t at = buffer_of(channel, line);

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

/* What cannot come from the helper itself. */
static void explain(int error, char text[PG_TEXT])
{
    if (*text || (error != -EPIPE && error != -ETIMEDOUT))
        return;
    strcpy(text, error == -EPIPE ? "the helper process that runs the store has ended"
                                 : "the helper process that runs the store does not answer");
}

int pg_channel_call(struct pg_channel *channel, int operation, uint64_t offset,
                    const struct pg_piece *pieces, size_t count, char text[PG_TEXT])
{
    uint64_t total = total_length(pieces, count), done = 0, part;
    struct pg_line *line;
    int error = take_line(channel, pg_now() + channel->timeout, &line);

    text[0] = 0;
    if (error) {
        explain(error, text);
        return error;
    }
    do {
        part = total - done < channel->buffer_size ? total - done : channel->buffer_size;
        if (operation == PG_OP_WRITE)
            error = exchange(channel, line, 1, pieces, done, part);
        if (!error)
            error = ask(channel, line,
                        (struct request){(uint32_t)operation, 0, offset + done, part, 0}, text);
        if (!error && operation == PG_OP_READ)
            error = exchange(channel, line, 0, pieces, done, part);
        done += part;
    } while (!error && done < total);
    explain(error, text);
    give_line(channel, line, error);
    return error;
}

int pg_channel_ask(struct pg_channel *channel, uint64_t offset, uint64_t length, uint64_t address,
                   int protect, struct pg_line **asked)
{
    struct request request = {PG_OP_READ, (uint32_t)protect, offset, length, address};
    struct pg_line *line = NULL;
    int error = -EAGAIN;

    if (length > channel->buffer_size || pthread_mutex_trylock(&channel->lock))
        return -EAGAIN;
    if (!channel->stopping && !channel->dead && !channel->starting)
        line = free_line(channel);
    if (line) {
        use(channel, line);
        error = send(line->socket, &request, sizeof request, MSG_NOSIGNAL | MSG_DONTWAIT) < 0
                    ? -EAGAIN
                    : 0;
        if (error)
            line->state = PG_FREE; /* whoever takes it next finds out why */
    }
    pthread_mutex_unlock(&channel->lock);
    *asked = line;
    return error;
}

int pg_line_descriptor(const struct pg_line *line)
{
    return line->socket;
}

int pg_channel_answer(struct pg_channel *channel, struct pg_line *line, char text[PG_TEXT])
{
    int error = pg_helper_receive(line->socket, 0, text);

    explain(error, text);
    if (error != -ETIMEDOUT)
        give_line(channel, line, error);
    return error;
}

uint64_t pg_channel_bytes(const struct pg_channel *channel)
{
    return channel->count * channel->buffer_size;
}

uint64_t pg_channel_restarts(const struct pg_channel *channel)
{
    return __atomic_load_n(&channel->restarts, __ATOMIC_RELAXED);
}

static char **copy_arguments(const char *const *argv)
{
    size_t count = 0;
    char **copy;

    while (argv[count])
        count++;
    copy = calloc(count + 1, sizeof *copy);
    for (size_t i = 0; copy && i < count; i++)
        copy[i] = strdup(argv[i]);
    return copy;
}

int pg_channel_open(const struct pg_helper *helper, int region, uint64_t timeout_ns,
                    struct pg_channel **opened, char text[PG_TEXT])
{
    struct pg_channel *channel = calloc(1, sizeof *channel);
    pthread_condattr_t monotonic;
    int error = 0;

    text[0] = 0;
    if (!channel)
        return -ENOMEM;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&channel->lock, NULL);
    pthread_cond_init(&channel->freed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    channel->count = helper->lines < PG_LINES ? helper->lines : PG_LINES;
    channel->buffer_size = helper->buffer_size;
    channel->region = region;
    channel->timeout = timeout_ns > LEAST_PATIENCE ? timeout_ns : LEAST_PATIENCE;
    channel->restarts_left = helper->restarts;
    channel->control = channel->config = channel->log = channel->memfd = -1;
    channel->lines = calloc(channel->count, sizeof *channel->lines);
    channel->sockets = calloc(channel->count, sizeof *channel->sockets);
    for (uint32_t i = 0; channel->lines && channel->sockets && i < channel->count; i++)
        channel->lines[i].socket = channel->sockets[i] = -1;
    channel->argv = copy_arguments(helper->argv);
    channel->config = fcntl(helper->config_fd, F_DUPFD_CLOEXEC, 3);
    channel->log = fcntl(helper->log_fd, F_DUPFD_CLOEXEC, 3);
    channel->memfd = memfd_create("pagemove helper", MFD_CLOEXEC);
    if (!channel->lines || !channel->sockets || !channel->argv || channel->config < 0 ||
        channel->log < 0 || channel->memfd < 0 ||
        ftruncate(channel->memfd, (off_t)pg_channel_bytes(channel)))
        error = errno ? -errno : -ENOMEM;
    if (!error)
        error = pg_helper_start(channel, text);
    if (error) {
        pg_channel_close(channel, 0);
        return error;
    }
    channel->generation = 1;
    *opened = channel;
    return 0;
}

void pg_channel_stop(struct pg_channel *channel)
{
    pthread_mutex_lock(&channel->lock);
    channel->stopping = 1;
    if (channel->starting && channel->control >= 0)
        shutdown(channel->control, SHUT_RDWR);
    for (uint32_t i = 0; i < channel->count; i++)
        if (channel->lines[i].socket >= 0)
            shutdown(channel->lines[i].socket, SHUT_RDWR);
    pthread_cond_broadcast(&channel->freed);
    pthread_mutex_unlock(&channel->lock);
}

void pg_channel_forget(struct pg_channel *channel)
{
    for (uint32_t i = 0; i < channel->count; i++) {
        if (channel->lines && channel->lines[i].socket >= 0)
            close(channel->lines[i].socket);
        if (channel->sockets && channel->sockets[i] >= 0)
            close(channel->sockets[i]);
    }
    if (channel->control >= 0)
        close(channel->control);
    channel->control = -1;
    channel->count = 0;
}

void pg_channel_close(struct pg_channel *channel, int inherited)
{
    if (!inherited) {
        join_starter(channel);
        pg_helper_end(channel);
    }
    pg_channel_forget(channel);
    if (channel->memfd >= 0)
        close(channel->memfd);
    if (channel->config >= 0)
        close(channel->config);
    if (channel->log >= 0)
        close(channel->log);
    for (char **argument = channel->argv; argument && *argument; argument++)
        free(*argument);
    free(channel->argv);
    free(channel->lines);
    free(channel->sockets);
    free(channel);
}

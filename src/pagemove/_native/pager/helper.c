#define _GNU_SOURCE
#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "region.h"

extern char **environ;

enum { CONTROL_FD = 3, START_SECONDS = 30, MESSAGE = PG_TEXT + 16, HANDED = 4 };

struct answer {
    int32_t error;
    uint32_t text_length; /* bytes of explanation that follow */
};

static int wait_readable(int fd, uint64_t deadline)
{
    struct pollfd polled = {fd, POLLIN, 0};

    for (;;) {
        uint64_t at = pg_now();
        int left = at < deadline ? (int)((deadline - at + 999999) / 1000000) : 0;
        int ready = poll(&polled, 1, left);
        if (ready > 0)
            return 0;
        if (ready == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

int pg_helper_receive(int fd, uint64_t deadline, char text[PG_TEXT])
{
    char message[MESSAGE];
    struct answer answer;
    ssize_t got;
    int error = wait_readable(fd, deadline);
    size_t length;

    text[0] = 0;
    if (error)
        return error;
    do
        got = recv(fd, message, sizeof message, 0);
    while (got < 0 && errno == EINTR);
    if (got < (ssize_t)sizeof answer)
        return -EPIPE;
    memcpy(&answer, message, sizeof answer);
    length = (size_t)got - sizeof answer;
    if (length > answer.text_length)
        length = answer.text_length;
    if (length >= PG_TEXT)
        length = PG_TEXT - 1;
    memcpy(text, message + sizeof answer, length);
    text[length] = 0;
    return answer.error > 0 ? -answer.error : 0;
}

void pg_helper_end(struct pg_channel *channel)
{
    pthread_mutex_lock(&channel->lock);
    if (channel->control >= 0)
        close(channel->control); /* it ends when it sees this */
    channel->control = -1;
    pthread_mutex_unlock(&channel->lock);
    if (channel->pid <= 0)
        return;
    for (int tries = 0; tries < 200; tries++) {
        struct timespec pause = {0, 5000000};
        if (waitpid(channel->pid, NULL, WNOHANG) != 0) {
            channel->pid = 0;
            return;
        }
        nanosleep(&pause, NULL);
    }
    kill(channel->pid, SIGKILL);
    waitpid(channel->pid, NULL, 0);
    channel->pid = 0;
}

/* Hand the helper what it needs: its configuration, the memory, and its ends of all lines. */
static int send_descriptors(int control, const struct pg_channel *channel, const int *theirs)
{
    uint64_t numbers[2] = {channel->count, channel->buffer_size};
    struct iovec vector = {numbers, sizeof numbers};
    size_t count = channel->count + HANDED;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * (PG_LINES + HANDED))];
    } space = {.bytes = {0}};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = space.bytes,
                             .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int *descriptors = (int *)(void *)CMSG_DATA(header);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(&descriptors[0], &channel->config, sizeof(int));
    memcpy(&descriptors[1], &channel->memfd, sizeof(int));
    memcpy(&descriptors[2], &channel->log, sizeof(int));
    memcpy(&descriptors[3], &channel->region, sizeof(int));
    memcpy(&descriptors[HANDED], theirs, channel->count * sizeof(int));
    return sendmsg(control, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int spawn(struct pg_channel *channel, int control)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    int error;

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    /* The thread that starts it may be one that takes no signals. */
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawn_file_actions_adddup2(&actions, control, CONTROL_FD);
    error =
        posix_spawn(&channel->pid, channel->argv[0], &actions, &attributes, channel->argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return -error;
}

static void close_all(const int *descriptors, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
}

int pg_helper_start(struct pg_channel *channel, char text[PG_TEXT])
{
    int theirs[PG_LINES], pair[2], control[2], error = 0;
    uint32_t made = 0;

    text[0] = 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control))
        return -errno;
    /* dup2 onto itself would leave it closed on exec. */
    if (control[1] == CONTROL_FD) {
        control[1] = fcntl(CONTROL_FD, F_DUPFD_CLOEXEC, CONTROL_FD + 1);
        close(CONTROL_FD);
    }
    for (; made < channel->count && !error; made++) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
            error = -errno;
            break;
        }
        channel->sockets[made] = pair[0];
        theirs[made] = pair[1];
    }
    pthread_mutex_lock(&channel->lock);
    channel->control = control[0];
    if (channel->stopping)
        error = -ESHUTDOWN;
    pthread_mutex_unlock(&channel->lock);
    if (!error)
        error = send_descriptors(control[0], channel, theirs);
    if (!error)
        error = spawn(channel, control[1]);
    close(control[1]);
    close_all(theirs, made);
    if (!error)
        error =
            pg_helper_receive(control[0], pg_now() + START_SECONDS * UINT64_C(1000000000), text);
    if (error) {
        close_all(channel->sockets, made);
        for (uint32_t i = 0; i < channel->count; i++)
            channel->sockets[i] = -1;
        pg_helper_end(channel);
        return error;
    }
    return 0;
}

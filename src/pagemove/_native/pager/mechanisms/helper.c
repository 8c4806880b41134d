#define _GNU_SOURCE
#include "pager/mechanisms/helper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/host.h"
#include "pager/mechanisms/mail.h"

/* What a library of before Linux 5.4 lacks. */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
enum { WAIT_BY_PIDFD = 3 };

enum { CONTROL_FD = 3, MESSAGE = PG_TEXT + 16, HANDED = 5, LARGEST_ERRNO = 4095 };

/* ns: to start; to end of its own accord, with its store closed; and once it has been killed. */
#define START UINT64_C(30000000000)
#define FAREWELL UINT64_C(1000000000)
/* The same where others have to start one each if it is killed. */
#define LONG_FAREWELL UINT64_C(3000000000)
#define DYING UINT64_C(2000000000)
/* Between looks whether its start was given up. */
#define LOOK UINT64_C(100000000)

struct answer {
    int32_t error;
    uint32_t text_length; /* bytes of explanation that follow */
};

int pg_above_standard(int fd)
{
    int above, error;

    if (fd < 0)
        return -errno;
    if (fd > 2)
        return fd;
    above = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    error = errno;
    close(fd);
    return above < 0 ? -error : above;
}

/* A store says 0 or an errno. Anything else is not success. */
static int error_of(const struct answer *answer)
{
    if (answer->error >= 0 && answer->error <= LARGEST_ERRNO)
        return -answer->error;
    return -EIO;
}

int pg_wait_readable(int fd, uint64_t deadline)
{
    struct pollfd polled = {fd, POLLIN, 0};
    int ready;

    do
        ready = pg_poll_until(&polled, 1, deadline);
    while (ready < 0 && errno == EINTR);
    return ready > 0 ? 0 : ready ? -errno : -PG_NO_ANSWER;
}

int pg_helper_receive(int fd, uint64_t deadline, int *said, char text[PG_TEXT])
{
    char message[MESSAGE];
    struct answer answer;
    ssize_t got;
    int error = deadline ? pg_wait_readable(fd, deadline) : 0;
    size_t length;

    text[0] = 0;
    if (error)
        return error;
    do
        got = recv(fd, message, sizeof message, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN)
        return -PG_NO_ANSWER;
    if (got < (ssize_t)sizeof answer)
        return -PG_GONE;
    memcpy(&answer, message, sizeof answer);
    length = (size_t)got - sizeof answer;
    if (length > answer.text_length)
        length = answer.text_length;
    if (length >= PG_TEXT)
        length = PG_TEXT - 1;
    memcpy(text, message + sizeof answer, length);
    text[length] = 0;
    *said = error_of(&answer);
    return 0;
}

static int has_ended(int process, uint64_t patience)
{
    siginfo_t ignored;

    if (pg_wait_readable(process, pg_now() + patience))
        return 0;
    /* It is this process's child after all where this one is the init of a container. */
    waitid((idtype_t)WAIT_BY_PIDFD, (id_t)process, &ignored, WEXITED | WNOHANG | __WALL);
    return 1;
}

static void close_if_open(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* It ends, or is done with this region, when it sees this. */
static void say_farewell(struct pg_channel *channel)
{
    pthread_mutex_lock(&channel->lock);
    if (channel->control >= 0 && channel->shares) {
        shutdown(channel->control, SHUT_WR);
        channel->leaving = channel->control;
        channel->control = -1;
    }
    close_if_open(&channel->control);
    pthread_mutex_unlock(&channel->lock);
}

/* Wait until it is done with this region, or has ended. */
static int has_let_go(const struct pg_channel *channel)
{
    int company = pg_has_company(channel);

    if (channel->leaving >= 0 &&
        pg_host_lets_go(channel->leaving, channel->process, company ? LONG_FAREWELL : FAREWELL))
        return 1;
    return has_ended(channel->process, channel->leaving >= 0 ? 0 : FAREWELL);
}

int pg_helper_end(struct pg_channel *channel)
{
    say_farewell(channel);
    if (channel->process >= 0 && !has_let_go(channel)) {
        /* What others have there and nowhere else would be lost. */
        if (pg_has_company(channel) && !channel->restartable)
            return -EBUSY;
        syscall(SYS_pidfd_send_signal, channel->process, SIGKILL, NULL, 0);
        if (!has_ended(channel->process, DYING))
            return -EBUSY;
    }
    close_if_open(&channel->process);
    close_if_open(&channel->leaving);
    pg_host_leave(channel);
    return 0;
}

/* Hand the helper what it needs: its configuration, the memory, and its ends of all lanes. */
static int send_descriptors(int control, const struct pg_channel *channel, const int *theirs)
{
    int has_door = channel->shares && channel->door_is_new;
    uint64_t numbers[4] = {channel->count, channel->buffer_size, (uint64_t)has_door,
                           channel->generation + 1};
    struct iovec vector = {numbers, sizeof numbers};
    size_t count = channel->count + HANDED - !has_door;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * (PG_LANES + HANDED))];
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
    memcpy(&descriptors[4], theirs, channel->count * sizeof(int));
    if (has_door)
        memcpy(&descriptors[count - 1], &channel->door, sizeof(int));
    return sendmsg(control, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void close_all(const int *descriptors, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
}

int pg_make_pair(int pair[2])
{
    int error;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -errno;
    pair[0] = pg_above_standard(pair[0]);
    pair[1] = pg_above_standard(pair[1]);
    error = pair[0] < 0 ? pair[0] : pair[1] < 0 ? pair[1] : 0;
    if (error)
        close_all(pair, 2);
    return error;
}

/* Its end must not be where it is to be in the helper: it would be closed there on exec. */
static int move_away(int *fd)
{
    int above, error;

    if (*fd != CONTROL_FD)
        return 0;
    above = fcntl(*fd, F_DUPFD_CLOEXEC, CONTROL_FD + 1);
    error = above < 0 ? -errno : 0;
    close(*fd);
    *fd = above;
    return error;
}

int pg_is_given_up(const struct pg_channel *channel)
{
    return channel->given_up && __atomic_load_n(channel->given_up, __ATOMIC_ACQUIRE);
}

/* Wait until it says that it has its store, or why it has not. */
static int get_ready(const struct pg_channel *channel, int control, char text[PG_TEXT])
{
    uint64_t deadline = pg_now() + START, now;
    int said = 0, error;

    do {
        now = pg_now();
        error =
            pg_helper_receive(control, now + LOOK < deadline ? now + LOOK : deadline, &said, text);
    } while (error == -PG_NO_ANSWER && now < deadline && !pg_is_given_up(channel));
    if (error == -PG_NO_ANSWER)
        strcpy(text, "the helper process did not have its store within 30 s: importing its module, "
                     "or unpickling it, takes too long; what a script does belongs under "
                     "`if __name__ == \"__main__\":`");
    else if (error)
        strcpy(text, "the helper process ended before it had its store: see its messages on "
                     "standard error");
    return error ? -pg_errno_of(-error) : said;
}

int pg_helper_start(struct pg_channel *channel, char text[PG_TEXT])
{
    int theirs[PG_LANES], pair[2], control[2] = {-1, -1}, error = 0;
    uint32_t made = 0;

    text[0] = 0;
    control[0] = pg_host_join(channel);
    if (control[0] < 0) {
        error = pg_make_pair(control);
        if (error)
            return error;
        error = move_away(&control[1]);
    }
    while (made < channel->count && !error) {
        error = pg_make_pair(pair);
        if (error)
            break;
        channel->sockets[made] = pair[0];
        theirs[made++] = pair[1];
    }
    pthread_mutex_lock(&channel->lock);
    channel->control = control[0];
    if (channel->stopping)
        error = -ESHUTDOWN;
    pthread_mutex_unlock(&channel->lock);
    if (!error)
        error = send_descriptors(control[0], channel, theirs);
    if (!error && channel->process < 0) {
        int process = pg_spawn(channel->argv, control[1]);
        error = process < 0 ? process : 0;
        channel->process = process < 0 ? -1 : process;
    }
    if (control[1] >= 0)
        close(control[1]);
    close_all(theirs, made);
    if (!error)
        error = get_ready(channel, control[0], text);
    if (error) {
        close_all(channel->sockets, made);
        for (uint32_t i = 0; i < channel->count; i++)
            channel->sockets[i] = -1;
        pg_helper_end(channel);
        if (pg_mail_is_cut_off(channel->letters, channel->generation + 1))
            strcpy(text, "the helper process ended before it had its store" PG_CUT_OFF);
        return error;
    }
    return 0;
}

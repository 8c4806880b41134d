#define _GNU_SOURCE
#include "pager/mechanisms/host.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/helper.h"

/* What a helper says when it is done with a region. No store's answer: those are 0 or positive. */
enum { LEFT = -1 };

/* ns: for a helper to take another region. It imports or unpickles for one at a time, and a new one
 * of its own takes hardly longer. Between looks whether the start was given up. */
#define PATIENCE UINT64_C(2000000000)
#define LOOK UINT64_C(100000000)

struct pg_host {
    unsigned holders, members, most;
};

struct pg_host *pg_host_new(void)
{
    struct pg_host *host = calloc(1, sizeof *host);

    if (host)
        host->holders = 1;
    return host;
}

struct pg_host *pg_host_hold(struct pg_host *host)
{
    __atomic_add_fetch(&host->holders, 1, __ATOMIC_RELAXED);
    return host;
}

void pg_host_release(struct pg_host *host)
{
    if (!__atomic_sub_fetch(&host->holders, 1, __ATOMIC_ACQ_REL))
        free(host);
}

unsigned pg_host_members(const struct pg_host *host)
{
    return __atomic_load_n(&host->members, __ATOMIC_ACQUIRE);
}

static void enter(struct pg_channel *channel)
{
    unsigned members = __atomic_add_fetch(&channel->host->members, 1, __ATOMIC_ACQ_REL);
    unsigned most = __atomic_load_n(&channel->host->most, __ATOMIC_RELAXED);

    while (most < members && !__atomic_compare_exchange_n(&channel->host->most, &most, members, 0,
                                                          __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    __atomic_store_n(&channel->shares, 1, __ATOMIC_RELEASE);
}

void pg_host_leave(struct pg_channel *channel)
{
    if (__atomic_exchange_n(&channel->shares, 0, __ATOMIC_ACQ_REL))
        __atomic_sub_fetch(&channel->host->members, 1, __ATOMIC_ACQ_REL);
}

int pg_has_company(const struct pg_channel *channel)
{
    return channel->shares && __atomic_load_n(&channel->host->members, __ATOMIC_ACQUIRE) > 1;
}

int pg_had_company(const struct pg_channel *channel)
{
    return channel->shares && __atomic_load_n(&channel->host->most, __ATOMIC_ACQUIRE) > 1;
}

/* Room for one descriptor beside a byte. */
struct packet {
    char byte;
    struct iovec vector;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } space;
    struct msghdr message;
};

static void prepare(struct packet *packet)
{
    memset(packet, 0, sizeof *packet);
    packet->vector = (struct iovec){&packet->byte, 1};
    packet->message = (struct msghdr){.msg_iov = &packet->vector,
                                      .msg_iovlen = 1,
                                      .msg_control = packet->space.bytes,
                                      .msg_controllen = sizeof packet->space.bytes};
}

static int knock(int door, int fd)
{
    struct packet packet;
    struct cmsghdr *header;

    prepare(&packet);
    header = CMSG_FIRSTHDR(&packet.message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return sendmsg(door, &packet.message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* The helper says that it takes the region, and which process it is. It has to say that itself: a
 * number may be another process's in another namespace. */
static int receive_process(int control)
{
    struct packet packet;
    struct cmsghdr *header;
    int process;

    prepare(&packet);
    if (recvmsg(control, &packet.message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
        return -PG_GONE;
    header = CMSG_FIRSTHDR(&packet.message);
    if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int)))
        return -PG_GONE;
    memcpy(&process, CMSG_DATA(header), sizeof process);
    return pg_above_standard(process);
}

static int enter_by_door(struct pg_channel *channel)
{
    uint64_t deadline = pg_now() + PATIENCE, now;
    int pair[2], error = pg_make_pair(pair), process;

    if (error)
        return error;
    error = knock(channel->door, pair[1]);
    close(pair[1]);
    if (!error)
        do {
            now = pg_now();
            error = pg_wait_readable(pair[0], now + LOOK < deadline ? now + LOOK : deadline);
        } while (error == -PG_NO_ANSWER && now < deadline && !pg_is_given_up(channel));
    process = error ? error : receive_process(pair[0]);
    if (process < 0) {
        /* It has been handed nothing yet, so it cannot begin with the store later on. */
        close(pair[0]);
        return process;
    }
    channel->process = process;
    return pair[0];
}

int pg_host_join(struct pg_channel *channel)
{
    int control = -PG_GONE;

    if (channel->door < 0 || !channel->host)
        return control;
    if (!channel->door_is_new)
        control = enter_by_door(channel);
    if (channel->door_is_new || control >= 0)
        enter(channel);
    return control;
}

int pg_host_lets_go(int control, int process, uint64_t patience)
{
    uint64_t deadline = pg_now() + patience;
    struct pollfd polled[2] = {{process, POLLIN, 0}, {control, POLLIN, 0}};
    int32_t said[2];

    for (;;) {
        int ready = pg_poll_until(polled, 2, deadline);
        ssize_t got;
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0 || polled[0].revents)
            return 0;
        got = recv(control, said, sizeof said, MSG_DONTWAIT);
        if (got == (ssize_t)sizeof said && said[0] == LEFT)
            return 1;
        if (!got || (got < 0 && errno != EINTR && errno != EAGAIN))
            polled[1].fd = -1; /* it is about to end */
    }
}

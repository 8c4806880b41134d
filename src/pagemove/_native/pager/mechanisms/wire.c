#define _GNU_SOURCE
#include "pager/mechanisms/wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "pager/mechanisms/clock.h"

/* ns between looks whether to stop. */
#define LOOK UINT64_C(100000000)

int pg_wire_wait(const struct pg_wire *wire, short events)
{
    struct pollfd polled = {wire->fd, events, 0};
    uint64_t now = pg_now(), deadline = pg_later(now, wire->patience);

    if (wire->deadline < deadline)
        deadline = wire->deadline;
    for (;;) {
        uint64_t look = pg_later(now, LOOK);
        int ready = pg_poll_until(&polled, 1, look < deadline ? look : deadline);
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (wire->stopping && __atomic_load_n(wire->stopping, __ATOMIC_ACQUIRE))
            return -ECANCELED;
        now = pg_now();
        if (now >= deadline)
            return -ETIMEDOUT;
    }
}

/* What to do after a call that transferred so many bytes: 1, go on; or 0, -errno. */
static int judge(const struct pg_wire *wire, ssize_t moved, short events)
{
    if (moved > 0)
        return pg_now() < wire->deadline ? 0 : -ETIMEDOUT;
    if (!moved)
        return -ECONNRESET;
    if (errno == EINTR)
        return 0;
    return errno == EAGAIN ? pg_wire_wait(wire, events) : -errno;
}

int pg_wire_receive(const struct pg_wire *wire, void *bytes, size_t length)
{
    size_t done = 0;
    int error = 0;

    while (done < length && !error) {
        ssize_t got = recv(wire->fd, (char *)bytes + done, length - done, MSG_DONTWAIT);
        done += got > 0 ? (size_t)got : 0;
        if (done < length)
            error = judge(wire, got, POLLIN);
    }
    return error;
}

int pg_wire_send(const struct pg_wire *wire, const void *bytes, size_t length)
{
    size_t done = 0;
    int error = 0;

    while (done < length && !error) {
        ssize_t put =
            send(wire->fd, (const char *)bytes + done, length - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        done += put > 0 ? (size_t)put : 0;
        if (done < length)
            error = judge(wire, put, POLLOUT);
    }
    return error;
}

int pg_wire_pass(const struct pg_wire *wire, const void *bytes, size_t length, int fd)
{
    struct iovec vector = {(void *)(uintptr_t)bytes, length};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } space = {.bytes = {0}};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = space.bytes,
                             .msg_controllen = sizeof space.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    ssize_t put;
    int error = 0;

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    do {
        put = sendmsg(wire->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put < 0)
            error = judge(wire, put, POLLOUT);
    } while (put < 0 && !error);
    /* It goes with the first byte. */
    return error ? error : pg_wire_send(wire, (const char *)bytes + put, length - (size_t)put);
}

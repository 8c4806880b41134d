/* The functions of the C library that hand memory to the kernel. */
#define _GNU_SOURCE
#include "bounce/bounce.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static ssize_t bounced_one(const struct pb_call *call, void *memory, size_t nbytes)
{
    struct iovec part = {memory, nbytes};

    return pb_bounce(call, &part, nbytes);
}

/* With MSG_ZEROCOPY the kernel reads what is sent after the call has returned: a piece would be
 * gone by then. */
static int is_bounced(const void *memory, size_t nbytes, int flags)
{
    return !(flags & MSG_ZEROCOPY) && pb_is_paged((uintptr_t)memory, nbytes);
}

static int are_some(const struct iovec *parts, int count)
{
    return count > 0 && parts && pb_are_paged(parts, (size_t)count);
}

EXPORTED ssize_t read(int fd, void *memory, size_t nbytes)
{
    struct pb_call call = {.kind = PB_READ, .fd = fd};

    return pb_is_paged((uintptr_t)memory, nbytes) ? bounced_one(&call, memory, nbytes)
                                                  : BEHIND(read)(fd, memory, nbytes);
}

EXPORTED ssize_t write(int fd, const void *memory, size_t nbytes)
{
    struct pb_call call = {.kind = PB_WRITE, .fd = fd};

    return pb_is_paged((uintptr_t)memory, nbytes)
               ? bounced_one(&call, (void *)(uintptr_t)memory, nbytes)
               : BEHIND(write)(fd, memory, nbytes);
}

EXPORTED ssize_t pread(int fd, void *memory, size_t nbytes, off_t offset)
{
    struct pb_call call = {.kind = PB_PREAD, .fd = fd, .offset = offset};

    return pb_is_paged((uintptr_t)memory, nbytes) && offset >= 0
               ? bounced_one(&call, memory, nbytes)
               : BEHIND(pread)(fd, memory, nbytes, offset);
}

EXPORTED ssize_t pwrite(int fd, const void *memory, size_t nbytes, off_t offset)
{
    struct pb_call call = {.kind = PB_PWRITE, .fd = fd, .offset = offset};

    return pb_is_paged((uintptr_t)memory, nbytes) && offset >= 0
               ? bounced_one(&call, (void *)(uintptr_t)memory, nbytes)
               : BEHIND(pwrite)(fd, memory, nbytes, offset);
}

EXPORTED ssize_t recv(int fd, void *memory, size_t nbytes, int flags)
{
    struct pb_call call = {.kind = PB_RECEIVE, .fd = fd, .flags = flags};

    return pb_is_paged((uintptr_t)memory, nbytes) ? bounced_one(&call, memory, nbytes)
                                                  : BEHIND(recv)(fd, memory, nbytes, flags);
}

EXPORTED ssize_t recvfrom(int fd, void *restrict memory, size_t nbytes, int flags,
                          struct sockaddr *restrict from, socklen_t *restrict length)
{
    struct pb_call call = {
        .kind = PB_RECEIVE, .fd = fd, .flags = flags, .from = from, .from_length = length};

    return pb_is_paged((uintptr_t)memory, nbytes)
               ? bounced_one(&call, memory, nbytes)
               : BEHIND(recvfrom)(fd, memory, nbytes, flags, from, length);
}

EXPORTED ssize_t send(int fd, const void *memory, size_t nbytes, int flags)
{
    struct pb_call call = {.kind = PB_SEND, .fd = fd, .flags = flags};

    return is_bounced(memory, nbytes, flags) ? bounced_one(&call, (void *)(uintptr_t)memory, nbytes)
                                             : BEHIND(send)(fd, memory, nbytes, flags);
}

EXPORTED ssize_t sendto(int fd, const void *memory, size_t nbytes, int flags,
                        const struct sockaddr *to, socklen_t length)
{
    struct pb_call call = {
        .kind = PB_SEND, .fd = fd, .flags = flags, .to = to, .to_length = length};

    return is_bounced(memory, nbytes, flags)
               ? bounced_one(&call, (void *)(uintptr_t)memory, nbytes)
               : BEHIND(sendto)(fd, memory, nbytes, flags, to, length);
}

static ssize_t vector(struct pb_call call, const struct iovec *parts, int count)
{
    return pb_bounce(&call, parts, pb_total(parts, (size_t)count));
}

EXPORTED ssize_t readv(int fd, const struct iovec *parts, int count)
{
    return are_some(parts, count)
               ? vector((struct pb_call){.kind = PB_READ, .fd = fd}, parts, count)
               : BEHIND(readv)(fd, parts, count);
}

EXPORTED ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return are_some(parts, count)
               ? vector((struct pb_call){.kind = PB_WRITE, .fd = fd}, parts, count)
               : BEHIND(writev)(fd, parts, count);
}

EXPORTED ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset)
{
    struct pb_call call = {.kind = PB_PREAD, .fd = fd, .offset = offset};

    return are_some(parts, count) && offset >= 0 ? vector(call, parts, count)
                                                 : BEHIND(preadv)(fd, parts, count, offset);
}

EXPORTED ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    struct pb_call call = {.kind = PB_PWRITE, .fd = fd, .offset = offset};

    return are_some(parts, count) && offset >= 0 ? vector(call, parts, count)
                                                 : BEHIND(pwritev)(fd, parts, count, offset);
}

/* An offset of -1 is that of the file. */
static struct pb_call second_vector(enum pb_kind kind, int fd, off_t offset, int flags)
{
    if (offset == -1 && !flags)
        return (struct pb_call){.kind = kind == PB_PREAD ? PB_READ : PB_WRITE, .fd = fd};
    return (struct pb_call){.kind = kind, .fd = fd, .offset = offset, .vector_flags = flags};
}

EXPORTED ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return are_some(parts, count) && offset >= -1
               ? vector(second_vector(PB_PREAD, fd, offset, flags), parts, count)
               : BEHIND(preadv2)(fd, parts, count, offset, flags);
}

EXPORTED ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return are_some(parts, count) && offset >= -1
               ? vector(second_vector(PB_PWRITE, fd, offset, flags), parts, count)
               : BEHIND(pwritev2)(fd, parts, count, offset, flags);
}

/* Messages with what goes beside them (descriptors, credentials): at once, of a stream as much as
 * fits a piece, which the caller of these expects. */

static int is_message(const struct msghdr *message)
{
    return message && message->msg_iov && pb_are_paged(message->msg_iov, message->msg_iovlen);
}

static ssize_t bounced_message(int fd, struct msghdr *message, int flags, int in)
{
    struct pb_call call = {.kind = in ? PB_RECEIVE : PB_SEND, .fd = fd};
    size_t size = pb_piece(&call, pb_total(message->msg_iov, message->msg_iovlen));
    char *piece = malloc(size);
    struct iovec part = {piece, size};
    struct msghdr other = *message;
    ssize_t moved;
    int error;

    if (!piece) {
        errno = ENOMEM;
        return -1;
    }
    other.msg_iov = &part;
    other.msg_iovlen = 1;
    if (!in)
        pb_copy(message->msg_iov, 0, piece, size, 0);
    moved = in ? BEHIND(recvmsg)(fd, &other, flags) : BEHIND(sendmsg)(fd, &other, flags);
    error = errno;
    if (in && moved >= 0) {
        pb_copy(message->msg_iov, 0, piece, (size_t)moved < size ? (size_t)moved : size, 1);
        other.msg_iov = message->msg_iov;
        other.msg_iovlen = message->msg_iovlen;
        *message = other;
    }
    free(piece);
    errno = error;
    return moved;
}

EXPORTED ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return is_message(message) ? bounced_message(fd, message, flags, 1)
                               : BEHIND(recvmsg)(fd, message, flags);
}

EXPORTED ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct msghdr own;

    if (flags & MSG_ZEROCOPY || !is_message(message))
        return BEHIND(sendmsg)(fd, message, flags);
    own = *message;
    return bounced_message(fd, &own, flags, 0);
}

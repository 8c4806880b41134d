/* Whether memory is paged, and a call that copies through memory that is not. */
#define _GNU_SOURCE
#include "bounce/bounce.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What files read past the page cache (O_DIRECT) want. */
enum { ALIGNMENT = 4096 };

static uintptr_t paged_from, paged_to;

void pagemove_bounce(uintptr_t from, uintptr_t to)
{
    __atomic_store_n(&paged_to, to, __ATOMIC_RELAXED);
    __atomic_store_n(&paged_from, from, __ATOMIC_RELEASE);
}

int pb_is_paged(uintptr_t address, size_t nbytes)
{
    uintptr_t from = __atomic_load_n(&paged_from, __ATOMIC_ACQUIRE);

    return from && nbytes && nbytes <= SSIZE_MAX &&
           address < __atomic_load_n(&paged_to, __ATOMIC_RELAXED) && address + nbytes > from;
}

int pb_are_paged(const struct iovec *parts, size_t count)
{
    size_t total = 0;
    int found = 0;

    if (count > IOV_MAX)
        return 0;
    for (size_t i = 0; i < count; i++) {
        if (parts[i].iov_len > SSIZE_MAX - total)
            return 0;
        total += parts[i].iov_len;
        found |= pb_is_paged((uintptr_t)parts[i].iov_base, parts[i].iov_len);
    }
    return found;
}

size_t pb_total(const struct iovec *parts, size_t count)
{
    size_t total = 0;

    for (size_t i = 0; i < count; i++)
        total += parts[i].iov_len;
    return total;
}

void *pb_behind(void **slot, const char *name)
{
    void *found = __atomic_load_n(slot, __ATOMIC_RELAXED);

    if (!found) {
        found = dlsym(RTLD_NEXT, name);
        __atomic_store_n(slot, found, __ATOMIC_RELAXED);
    }
    return found;
}

static int is_in(const struct pb_call *call)
{
    return call->kind == PB_READ || call->kind == PB_PREAD || call->kind == PB_RECEIVE;
}

static ssize_t do_piece(const struct pb_call *call, void *piece, size_t nbytes, size_t done)
{
    struct iovec part = {piece, nbytes};
    off_t offset = call->offset < 0 ? call->offset : call->offset + (off_t)done;

    switch (call->kind) {
    case PB_READ:
        return BEHIND(read)(call->fd, piece, nbytes);
    case PB_WRITE:
        return BEHIND(write)(call->fd, piece, nbytes);
    case PB_PREAD:
        if (call->vector_flags)
            return BEHIND(preadv2)(call->fd, &part, 1, offset, call->vector_flags);
        return BEHIND(pread)(call->fd, piece, nbytes, offset);
    case PB_PWRITE:
        if (call->vector_flags)
            return BEHIND(pwritev2)(call->fd, &part, 1, offset, call->vector_flags);
        return BEHIND(pwrite)(call->fd, piece, nbytes, offset);
    case PB_RECEIVE:
        return BEHIND(recvfrom)(call->fd, piece, nbytes, call->flags, call->from,
                                call->from_length);
    case PB_SEND:
        return BEHIND(sendto)(call->fd, piece, nbytes, call->flags, call->to, call->to_length);
    }
    return -1;
}

void pb_copy(const struct iovec *parts, size_t skip, char *piece, size_t nbytes, int in)
{
    for (; nbytes; parts++) {
        size_t length = parts->iov_len;

        if (skip >= length) {
            skip -= length;
            continue;
        }
        length -= skip;
        if (length > nbytes)
            length = nbytes;
        if (in)
            memcpy((char *)parts->iov_base + skip, piece, length);
        else
            memcpy(piece, (char *)parts->iov_base + skip, length);
        piece += length;
        nbytes -= length;
        skip = 0;
    }
}

/* Whether what is written goes to the end of the file, wherever that is by then. */
static int is_appended(const struct pb_call *call)
{
    int flags;

    if (call->kind != PB_WRITE && call->kind != PB_PWRITE)
        return 0;
    flags = fcntl(call->fd, F_GETFL);
    return call->vector_flags & RWF_APPEND || (flags >= 0 && flags & O_APPEND);
}

size_t pb_piece(const struct pb_call *call, size_t total)
{
    int type = 0;
    socklen_t length = sizeof type;

    /* Another process's record may come between two pieces. */
    if (total > PB_PIECE && is_appended(call))
        return total;
    if (total > PB_PIECE && call->kind != PB_PREAD && call->kind != PB_PWRITE &&
        !getsockopt(call->fd, SOL_SOCKET, SO_TYPE, &type, &length) && type != SOCK_STREAM)
        return total;
    return total < PB_PIECE ? total : PB_PIECE;
}

/* Whether a call goes on after a piece that was filled. A pipe, a socket or a terminal may have no
 * more for now, and then it would wait with what it has. */
static int goes_on(const struct pb_call *call)
{
    struct stat status;

    if (call->kind == PB_READ)
        return !fstat(call->fd, &status) && S_ISREG(status.st_mode);
    return call->kind != PB_RECEIVE || (call->flags & MSG_WAITALL && !(call->flags & MSG_PEEK));
}

ssize_t pb_bounce(const struct pb_call *call, const struct iovec *parts, size_t total)
{
    size_t size = pb_piece(call, total), done = 0;
    int in = is_in(call), more = size < total && goes_on(call), error;
    char *piece = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1));
    ssize_t moved;

    if (!piece) {
        errno = ENOMEM;
        return -1;
    }
    do {
        size_t nbytes = total - done < size ? total - done : size, kept;

        if (!in)
            pb_copy(parts, done, piece, nbytes, 0);
        moved = do_piece(call, piece, nbytes, done);
        if (moved < 0)
            break;
        /* With MSG_TRUNC it is the length of a message that may be longer. */
        kept = (size_t)moved < nbytes ? (size_t)moved : nbytes;
        if (in)
            pb_copy(parts, done, piece, kept, 1);
        done += (size_t)moved;
        more = more && kept == nbytes;
    } while (more && done < total);
    error = errno;
    free(piece);
    errno = error;
    return done || moved >= 0 ? (ssize_t)done : -1;
}

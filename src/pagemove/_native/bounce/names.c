/* The same functions under the other names that glibc's headers give them: for offsets of 64 bits,
 * which all are here, and with the room that a compiler knows of (_FORTIFY_SOURCE). Memory that is
 * too small for what is asked is a defect of the program, which ends as there. */
#define _GNU_SOURCE
#include "bounce/bounce.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#undef fread_unlocked

#ifdef __GLIBC__
EXPORTED ssize_t pread64(int fd, void *memory, size_t nbytes, off64_t offset)
{
    return pread(fd, memory, nbytes, offset);
}

EXPORTED ssize_t pwrite64(int fd, const void *memory, size_t nbytes, off64_t offset)
{
    return pwrite(fd, memory, nbytes, offset);
}

EXPORTED ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return preadv(fd, parts, count, offset);
}

EXPORTED ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev(fd, parts, count, offset);
}

EXPORTED ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    return preadv2(fd, parts, count, offset, flags);
}

EXPORTED ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset,
                             int flags)
{
    return pwritev2(fd, parts, count, offset, flags);
}

static void check(size_t nbytes, size_t room)
{
    if (nbytes > room)
        abort();
}

EXPORTED ssize_t __read_chk(int fd, void *memory, size_t nbytes, size_t room);
EXPORTED ssize_t __pread_chk(int fd, void *memory, size_t nbytes, off_t offset, size_t room);
EXPORTED ssize_t __pread64_chk(int fd, void *memory, size_t nbytes, off64_t offset, size_t room);
EXPORTED ssize_t __recv_chk(int fd, void *memory, size_t nbytes, size_t room, int flags);
EXPORTED ssize_t __recvfrom_chk(int fd, void *restrict memory, size_t nbytes, size_t room,
                                int flags, struct sockaddr *restrict from,
                                socklen_t *restrict length);
EXPORTED size_t __fread_chk(void *restrict memory, size_t room, size_t size, size_t count,
                            FILE *restrict file);
EXPORTED size_t __fread_unlocked_chk(void *restrict memory, size_t room, size_t size, size_t count,
                                     FILE *restrict file);

ssize_t __read_chk(int fd, void *memory, size_t nbytes, size_t room)
{
    check(nbytes, room);
    return read(fd, memory, nbytes);
}

ssize_t __pread_chk(int fd, void *memory, size_t nbytes, off_t offset, size_t room)
{
    check(nbytes, room);
    return pread(fd, memory, nbytes, offset);
}

ssize_t __pread64_chk(int fd, void *memory, size_t nbytes, off64_t offset, size_t room)
{
    return __pread_chk(fd, memory, nbytes, offset, room);
}

ssize_t __recv_chk(int fd, void *memory, size_t nbytes, size_t room, int flags)
{
    check(nbytes, room);
    return recv(fd, memory, nbytes, flags);
}

ssize_t __recvfrom_chk(int fd, void *restrict memory, size_t nbytes, size_t room, int flags,
                       struct sockaddr *restrict from, socklen_t *restrict length)
{
    check(nbytes, room);
    return recvfrom(fd, memory, nbytes, flags, from, length);
}

static size_t checked_product(size_t size, size_t count, size_t room)
{
    size_t total;

    check(__builtin_mul_overflow(size, count, &total) ? SIZE_MAX : total, room);
    return count;
}

size_t __fread_chk(void *restrict memory, size_t room, size_t size, size_t count,
                   FILE *restrict file)
{
    return fread(memory, size, checked_product(size, count, room), file);
}

size_t __fread_unlocked_chk(void *restrict memory, size_t room, size_t size, size_t count,
                            FILE *restrict file)
{
    return fread_unlocked(memory, size, checked_product(size, count, room), file);
}
#endif

/* The first read (HELD=read) or write (HELD=write) of the file named HELD_FILE by the pager stops
 * the process, and fails when that goes on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

static int held;

static int is_held(const char *operation, int fd)
{
    const char *wanted = getenv("HELD"), *path = getenv("HELD_FILE");
    struct stat one, other;

    if (!wanted || !path || strcmp(wanted, operation) != 0 || fstat(fd, &one) ||
        stat(path, &other) || one.st_ino != other.st_ino ||
        __atomic_exchange_n(&held, 1, __ATOMIC_ACQ_REL))
        return 0;
    /* To this thread: it gets no further before it is stopped. */
    raise(SIGSTOP);
    errno = EIO;
    return 1;
}

/* As where nothing is in the page cache. */
ssize_t preadv64v2(int fd, const struct iovec *vector, int count, off64_t offset, int flags)
{
    ssize_t (*real)(int, const struct iovec *, int, off64_t, int) = dlsym(RTLD_NEXT, "preadv64v2");
    const char *wanted = getenv("HELD");

    if (wanted && !strcmp(wanted, "read") && flags & RWF_NOWAIT) {
        errno = EAGAIN;
        return -1;
    }
    return real(fd, vector, count, offset, flags);
}

ssize_t preadv64(int fd, const struct iovec *vector, int count, off64_t offset)
{
    ssize_t (*real)(int, const struct iovec *, int, off64_t) = dlsym(RTLD_NEXT, "preadv64");

    return is_held("read", fd) ? -1 : real(fd, vector, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *vector, int count, off64_t offset)
{
    ssize_t (*real)(int, const struct iovec *, int, off64_t) = dlsym(RTLD_NEXT, "pwritev64");

    return is_held("write", fd) ? -1 : real(fd, vector, count, offset);
}

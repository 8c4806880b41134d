#define _GNU_SOURCE
#include "pager/mechanisms/table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define UNSHARE 2u

static int close_range_of(unsigned first, unsigned last, unsigned flags)
{
    return first > last || !syscall(SYS_close_range, first, last, flags) ? 0 : -errno;
}

static int by_value(const void *one, const void *other)
{
    int a = *(const int *)one, b = *(const int *)other;

    return (a > b) - (a < b);
}

int pg_own_table(int *kept, size_t count, int filler)
{
    unsigned next = 0;
    int error;

    qsort(kept, count, sizeof *kept, by_value);
    /* What lies behind the last is not even copied. Unlike unshare(2) this is permitted in
     * containers. */
    error = close_range_of((unsigned)kept[count - 1] + 1, ~0u, UNSHARE);
    for (size_t i = 0; i < count && !error; i++) {
        if ((unsigned)kept[i] > next)
            error = close_range_of(next, (unsigned)kept[i] - 1, 0);
        next = (unsigned)kept[i] + 1;
    }
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO && !error; fd++)
        if (fcntl(fd, F_GETFD) < 0 && dup3(filler, fd, O_CLOEXEC) < 0)
            error = -errno;
    return error;
}

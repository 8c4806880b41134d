#define _GNU_SOURCE
#include "pager/mechanisms/direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pager/state/terms.h"

/* Where the kernel does not say: what all disks can. */
enum { USUAL_ALIGNMENT = 4096 };

/* Of the open file; 0: it cannot be read so. */
static uint32_t alignment_of(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx found;

    if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) && found.stx_mask & STATX_DIOALIGN)
        return found.stx_dio_offset_align > found.stx_dio_mem_align ? found.stx_dio_offset_align
                                                                    : found.stx_dio_mem_align;
#endif
    (void)fd;
    return USUAL_ALIGNMENT;
}

void pg_direct_open(struct pg_direct *direct, int fd, uint64_t offset, uint64_t block_size,
                    int writes)
{
    char path[64];

    /* This thread's table: the program's may have another file under that number. */
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", fd);
    direct->fd =
        open(path, (writes ? O_WRONLY : O_RDONLY) | O_DIRECT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (direct->fd < 0) {
        direct->state = -errno;
        return;
    }
    direct->alignment = alignment_of(direct->fd);
    direct->state = 1;
    if (!direct->alignment)
        direct->state = -EOPNOTSUPP;
    else if (offset % direct->alignment || block_size % direct->alignment)
        direct->state = -PG_UNALIGNED;
    if (direct->state < 0)
        pg_direct_close(direct);
}

void pg_direct_close(struct pg_direct *direct)
{
    if (direct->fd >= 0)
        close(direct->fd);
    direct->fd = -1;
}

int pg_direct_fits(const struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                   size_t count)
{
    uint64_t all = offset;

    if (__atomic_load_n(&direct->state, __ATOMIC_RELAXED) != 1)
        return 0;
    for (size_t i = 0; i < count; i++)
        all |= (uint64_t)(uintptr_t)vector[i].iov_base | vector[i].iov_len;
    return all % direct->alignment == 0;
}

/* The file system wants more than it says: it would refuse every time. */
static int note_refusal(struct pg_direct *direct, int error)
{
    if (error != EINVAL && error != EOPNOTSUPP)
        return 0;
    __atomic_store_n(&direct->state, -error, __ATOMIC_RELAXED);
    return 1;
}

int pg_direct_read(struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                   size_t count, uint64_t least)
{
    ssize_t got;

    do
        got = preadv(direct->fd, vector, (int)count, (off_t)offset);
    while (got < 0 && errno == EINTR);
    if (got >= 0 && (uint64_t)got >= least)
        return 0;
    if (got < 0)
        note_refusal(direct, errno);
    return -PG_NOT_NOW;
}

ssize_t pg_direct_write(struct pg_direct *direct, uint64_t offset, const struct iovec *vector,
                        size_t count)
{
    ssize_t put;

    do
        put = pwritev(direct->fd, vector, (int)count, (off_t)offset);
    while (put < 0 && errno == EINTR);
    if (put < 0 && note_refusal(direct, errno))
        return -PG_NOT_NOW;
    return put < 0 ? -errno : put;
}

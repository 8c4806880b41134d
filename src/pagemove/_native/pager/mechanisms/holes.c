/* Where a sparse file has nothing. */
#define _GNU_SOURCE
#include "pager/mechanisms/holes.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

#ifndef BCACHEFS_SUPER_MAGIC
#define BCACHEFS_SUPER_MAGIC 0xca451a4e
#endif

enum { SECTOR = 512 }; /* the unit of st_blocks, whatever the file system's is */

/* On others data that was written a moment ago has been called a hole (OpenZFS before 2.2.2), or it
 * is a server that says it, of another moment. */
static int is_known(int fd)
{
    struct statfs found;

    if (fstatfs(fd, &found))
        return 0;
    switch ((unsigned long)found.f_type) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case BCACHEFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
        return 1;
    default:
        return 0;
    }
}

int pg_has_holes(int fd)
{
    struct stat status;

    return !fstat(fd, &status) && S_ISREG(status.st_mode) &&
           status.st_blocks < status.st_size / SECTOR && is_known(fd);
}

int pg_is_hole(int fd, uint64_t at, uint64_t *length, uint64_t end)
{
    off_t data = lseek(fd, (off_t)at, SEEK_DATA), hole;
    struct stat status;

    if (data < 0) {
        /* No data up to the end of the file, which is not where it was if it has been cut short. */
        return errno == ENXIO && !fstat(fd, &status) && (uint64_t)status.st_size >= end;
    }
    if ((uint64_t)data > at) {
        if ((uint64_t)data - at < *length)
            *length = (uint64_t)data - at;
        return 1;
    }
    hole = lseek(fd, (off_t)at, SEEK_HOLE);
    if (hole > data && (uint64_t)hole - at < *length)
        *length = (uint64_t)hole - at;
    return 0;
}

int pg_is_cached(int fd, uint64_t at, uint64_t length)
{
    struct {
        uint64_t offset, length;
    } range = {at, length};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages = {0, 0, 0, 0, 0};

    return syscall(SYS_cachestat, fd, &range, &pages, 0) || pages.cached;
}

int pg_may_wait(int fd)
{
    struct statfs found;

    return fstatfs(fd, &found) || (found.f_type != TMPFS_MAGIC && found.f_type != RAMFS_MAGIC);
}

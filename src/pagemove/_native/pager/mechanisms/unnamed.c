#define _GNU_SOURCE
#include "pager/mechanisms/unnamed.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* As tempfile does where there is no O_TMPFILE: NFS, FUSE, CephFS. */
static int open_unlinked(const char *directory)
{
    char path[PATH_MAX];
    int fd;

    if (snprintf(path, sizeof path, "%s/pagemove-XXXXXX", directory) >= (int)sizeof path)
        return -ENAMETOOLONG;
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (unlink(path)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

/* Some file systems take a file and then refuse to write to it once it has no name. */
static int try_file(int fd)
{
    char byte = 1;

    if (pwrite(fd, &byte, 1, 0) != 1 || pread(fd, &byte, 1, 0) != 1 || ftruncate(fd, 0))
        return errno ? -errno : -EIO;
    return 0;
}

int pg_open_unnamed(const char *directory)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), error;

    if (fd < 0)
        fd = open_unlinked(directory);
    if (fd < 0)
        return fd;
    errno = 0;
    error = try_file(fd);
    if (!error)
        return fd;
    close(fd);
    return error;
}

int pg_explain_unnamed(const char *directory, int error, const char *verb,
                       char text[PG_UNNAMED_TEXT])
{
    const char *cause = strerror(error), *which = "that does";

    if (error == EMFILE || error == ENFILE || error == ENOMEM)
        return 0;
    if (error == EACCES || error == EPERM || error == EROFS)
        which = "that this process may write to";
    else if (error == ENOSPC || error == EDQUOT)
        which = "with room";
    else if (error == ENOENT && !access(directory, F_OK))
        cause = "its file system makes no files";
    if (error == EFBIG)
        snprintf(text, PG_UNNAMED_TEXT, "%s; raise RLIMIT_FSIZE (ulimit -f)", cause);
    else
        snprintf(text, PG_UNNAMED_TEXT, "%s; %s a directory %s", cause, verb, which);
    return 1;
}

/* Some file systems do not know how large they are. */
uint64_t pg_room_in(const char *directory)
{
    struct statvfs found;

    if (statvfs(directory, &found) || !found.f_blocks)
        return UINT64_MAX;
    return (uint64_t)found.f_bavail * found.f_frsize;
}

#define _GNU_SOURCE
#include "descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Output and error. */
static struct pm_identity standard[2];

int pm_keep(int fd)
{
    int high, error;

    if (fd < 0)
        return -errno;
    if (fd > STDERR_FILENO)
        return fd;
    high = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    error = errno;
    close(fd);
    return high < 0 ? -error : high;
}

struct pm_identity pm_identify(int fd)
{
    struct stat status;

    if (fd < 0 || fstat(fd, &status))
        return (struct pm_identity){0, PM_NO_FILE};
    return (struct pm_identity){status.st_dev, status.st_ino};
}

int pm_is_still(int fd, struct pm_identity identity)
{
    struct pm_identity now = pm_identify(fd);

    return identity.inode != PM_NO_FILE && now.device == identity.device &&
           now.inode == identity.inode;
}

void pm_close(int fd, struct pm_identity identity)
{
    if (pm_is_still(fd, identity))
        close(fd);
}

void pm_note_standard(void)
{
    static int noted;

    if (noted)
        return;
    noted = 1;
    standard[0] = pm_identify(STDOUT_FILENO);
    standard[1] = pm_identify(STDERR_FILENO);
}

int pm_may_print(int fd)
{
    struct pm_identity first = standard[fd - STDOUT_FILENO];
    struct stat status;
    int flags;

    if (first.inode == PM_NO_FILE)
        return 0;
    if (pm_is_still(fd, first))
        return 1;
    flags = fcntl(fd, F_GETFD);
    if (flags < 0 || flags & FD_CLOEXEC || fstat(fd, &status))
        return 0;
    if (S_ISREG(status.st_mode))
        return !status.st_nlink || fcntl(fd, F_GETFL) & O_APPEND;
    return isatty(fd);
}

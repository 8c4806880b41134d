/* The userfaultfd(2) of a baseline: a region whose faults it is told of, and the calls that serve
 * them. Own code; the baselines share nothing with the library but the kernel. */
#ifndef BENCHMARKS_USERFAULT_H
#define BENCHMARKS_USERFAULT_H

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* A baseline that cannot go on would leave the touching thread waiting forever. */
static inline void insist(int error, const char *what)
{
    if (error) {
        errno = -error;
        perror(what);
        abort();
    }
}

/* The answer of pread or pwrite. */
static inline int whole(ssize_t done, size_t length)
{
    return done == (ssize_t)length ? 0 : done < 0 ? -errno : -EIO;
}

struct region {
    uint8_t *start;
    size_t nbytes;
    int uffd;
    int stop; /* an eventfd: readable when the handler has to end */
};

static inline void region_close(struct region *region)
{
    if (region->start)
        munmap(region->start, region->nbytes);
    if (region->uffd >= 0)
        close(region->uffd);
    if (region->stop >= 0)
        close(region->stop);
}

static inline int region_register(struct region *region, bool writable)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {
        .range = {(uintptr_t)region->start, region->nbytes},
        .mode = UFFDIO_REGISTER_MODE_MISSING | (writable ? UFFDIO_REGISTER_MODE_WP : 0),
    };

    if (writable)
        api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    if (ioctl(region->uffd, UFFDIO_API, &api) || ioctl(region->uffd, UFFDIO_REGISTER, &range))
        return -errno;
    return 0;
}

static inline int region_open(struct region *region, size_t nbytes, bool writable)
{
    void *start = mmap(NULL, nbytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int error;

    *region = (struct region){.nbytes = nbytes, .uffd = -1, .stop = -1};
    if (start == MAP_FAILED)
        return -errno;
    region->start = start;
    madvise(start, nbytes, MADV_NOHUGEPAGE);
    madvise(start, nbytes, MADV_DONTFORK);
    region->stop = eventfd(0, EFD_CLOEXEC);
    region->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (region->uffd < 0 && errno == EPERM)
        region->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    error = region->stop < 0 || region->uffd < 0 ? -errno : region_register(region, writable);
    if (error)
        region_close(region);
    return error;
}

/* Wait for one fault. False: the handler has to end. */
static inline bool region_next_fault(const struct region *region, struct uffd_msg *message)
{
    struct pollfd waiting[] = {{region->uffd, POLLIN, 0}, {region->stop, POLLIN, 0}};

    for (;;) {
        if (poll(waiting, 2, -1) < 0)
            continue;
        if (waiting[1].revents)
            return false;
        if (read(region->uffd, message, sizeof *message) == sizeof *message &&
            message->event == UFFD_EVENT_PAGEFAULT)
            return true;
    }
}

static inline void region_stop(const struct region *region)
{
    uint64_t one = 1;

    while (write(region->stop, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

/* Install a block and wake who waits for it. One that is there already wakes them, too. */
static inline int region_copy(const struct region *region, size_t offset, const void *from,
                              size_t length, bool protect)
{
    struct uffdio_copy copy = {
        .dst = (uintptr_t)region->start + offset,
        .src = (uintptr_t)from,
        .len = length,
        .mode = protect ? UFFDIO_COPY_MODE_WP : 0,
    };
    struct uffdio_range range = {copy.dst, length};

    if (!ioctl(region->uffd, UFFDIO_COPY, &copy))
        return 0;
    if (errno == EEXIST && !ioctl(region->uffd, UFFDIO_WAKE, &range))
        return 0;
    return -errno;
}

/* Protect a block against writes; or let them go on, and wake who waits. */
static inline int region_protect(const struct region *region, size_t offset, size_t length,
                                 bool protect)
{
    struct uffdio_writeprotect change = {
        .range = {(uintptr_t)region->start + offset, length},
        .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };

    return ioctl(region->uffd, UFFDIO_WRITEPROTECT, &change) ? -errno : 0;
}

static inline int region_discard(const struct region *region, size_t offset, size_t length)
{
    return madvise(region->start + offset, length, MADV_DONTNEED) ? -errno : 0;
}

#endif

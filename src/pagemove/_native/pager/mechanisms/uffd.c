#define _GNU_SOURCE
#include "pager/mechanisms/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/mechanisms/copies.h"
#include "pager/mechanisms/guard.h"
#include "pager/mechanisms/trouble.h"
#include "uapi.h"

#define MOVE_DONTWAKE 1

#define FEATURE_SIGBUS (UINT64_C(1) << 7)
#define FEATURE_POISON (UINT64_C(1) << 14)
#define FEATURE_MOVE (UINT64_C(1) << 16)

static int open_plain(int flags)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
    int error = errno, device;

    if (fd >= 0)
        return fd;
    device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -error;
    fd = ioctl(device, PM_USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK | flags);
    /* Where a container masks it, it is another device, which does not know the call. */
    if (fd < 0 && errno != ENOTTY)
        error = errno;
    close(device);
    return fd < 0 ? -error : fd;
}

static int open_one(int flags, uint64_t features)
{
    struct pm_uffdio_api api = {.api = PM_UFFD_API, .features = features};
    int fd = open_plain(flags);

    if (fd < 0)
        return fd;
    if (ioctl(fd, PM_UFFDIO_API, &api)) {
        close(fd);
        return -ENOSYS;
    }
    return fd;
}

/* The one for the region: of any faults, or of user mode's if no more is granted. */
static int open_widest(struct pg_uffd *uffd, uint64_t features)
{
    int fd = uffd->user_mode_only ? -EPERM : open_one(0, features);

    uffd->user_mode_only = fd == -EPERM || fd == -EACCES;
    return uffd->user_mode_only ? open_one(PM_UFFD_USER_MODE_ONLY, features) : fd;
}

int pg_uffd_open_region(struct pg_uffd *uffd, int moves, int kernel_faults)
{
    uffd->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    uffd->user_mode_only = !kernel_faults;
    uffd->moves = moves;
    uffd->region = open_widest(uffd, moves ? FEATURE_MOVE | FEATURE_POISON : 0);
    if (uffd->region == -ENOSYS && moves) {
        /* The kernel does not know one of them. */
        uffd->moves = 0;
        uffd->region = open_widest(uffd, 0);
    }
    return uffd->region < 0 ? uffd->region : 0;
}

int pg_uffd_open(struct pg_uffd *uffd, int moves, int kernel_faults)
{
    int error = uffd->region < 0 ? pg_uffd_open_region(uffd, moves, kernel_faults) : 0;

    if (error)
        return error;
    /* The pager's own system calls touch slots, so the kernel's accesses have to fail as well:
     * with FEATURE_SIGBUS they do so in user mode too. */
    uffd->staging =
        open_one(PM_UFFD_USER_MODE_ONLY, FEATURE_SIGBUS | (uffd->moves ? FEATURE_MOVE : 0));
    /* That of self is the first thread's, which has no memory once it has ended. */
    uffd->pagemap = open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
    if (uffd->staging >= 0 && uffd->pagemap >= 0)
        return 0;
    {
        int error = uffd->staging < 0 ? uffd->staging : -errno;
        pg_uffd_close(uffd);
        return error;
    }
}

void pg_uffd_close(struct pg_uffd *uffd)
{
    int *const descriptors[] = {&uffd->region, &uffd->staging, &uffd->pagemap, &uffd->empty};

    for (size_t i = 0; i < sizeof descriptors / sizeof descriptors[0]; i++) {
        if (*descriptors[i] >= 0 && (!uffd->shared || descriptors[i] == &uffd->empty))
            close(*descriptors[i]);
        *descriptors[i] = -1;
    }
    if (uffd->poisoned)
        munmap(uffd->poisoned, uffd->length / uffd->page_size / 8 + 8);
    uffd->poisoned = NULL;
    if (uffd->spare)
        munmap((void *)(uintptr_t)uffd->spare, uffd->spare_length);
    uffd->spare = 0;
}

int pg_register(int fd, uint64_t start, uint64_t length, uint64_t mode)
{
    struct pm_uffdio_register arg = {.range = {start, length}, .mode = mode};

    return ioctl(fd, PM_UFFDIO_REGISTER, &arg) ? -errno : 0;
}

int pg_is_there(const struct pg_uffd *uffd, uint64_t address)
{
    uint64_t entry = 0;

    /* Present, or swapped, or a marker such as poison, which shows as swapped. */
    return pread(uffd->pagemap, &entry, sizeof entry,
                 (off_t)(address / uffd->page_size * sizeof entry)) == sizeof entry &&
           entry >> 62 != 0;
}

int pg_pages_in(const struct pg_uffd *uffd, uint64_t address, uint64_t length,
                struct pg_pages *pages)
{
    uint64_t entries[PG_MOST_PAGES], page = uffd->page_size;
    size_t count = length / page, wanted = count * sizeof entries[0];
    ssize_t got =
        pread(uffd->pagemap, entries, wanted, (off_t)(address / page * sizeof entries[0]));

    *pages = (struct pg_pages){{0}};
    if (got != (ssize_t)wanted)
        return got < 0 ? -errno : -EIO;
    for (size_t i = 0; i < count; i++)
        if (entries[i] >> 62)
            pg_add(pages, (unsigned)i, 1);
    return 0;
}

/* One UFFDIO_MOVE, repeated while the kernel asks for that. */
int64_t pg_move_some(const struct pg_uffd *uffd, enum pg_kernel_call call, uint64_t dst,
                     uint64_t src, uint64_t length)
{
    int in = call == PG_CALL_MOVE_IN, trouble = pg_trouble(call);
    int fd = in ? uffd->region : uffd->staging;
    /* Into a read-only region: nobody is to see it before it is protected. */
    uint64_t mode = in && uffd->read_only ? MOVE_DONTWAKE : 0;

    if (trouble)
        return -trouble;
    length = pg_portion(call, length, uffd->page_size);
    for (;;) {
        struct pm_uffdio_move arg = {.dst = dst, .src = src, .len = length, .mode = mode};

        if (!ioctl(fd, PM_UFFDIO_MOVE, &arg))
            return (int64_t)length;
        if (errno != EAGAIN && (errno != EINVAL || length == uffd->page_size))
            return -errno;
        if (arg.move > 0)
            return arg.move;
        if (errno == EINVAL)
            length = uffd->page_size; /* it lies in two mappings, by an advice of the user's */
        else
            sched_yield();
    }
}

int pg_show(const struct pg_uffd *uffd, uint64_t start, uint64_t length)
{
    int error = pg_protect(uffd, start, length, 1);

    pg_wake(uffd, start, length);
    return error;
}

void pg_empty_pages(uint64_t address, uint64_t length)
{
    madvise((void *)(uintptr_t)address, length, MADV_DONTNEED_LOCKED);
}

/* What becomes of a page that UFFDIO_MOVE has refused. 0: it is in the region, and only there. */
static int move_otherwise(const struct pg_uffd *uffd, int error, uint64_t dst, uint64_t src)
{
    if (pg_has_moved(uffd, error, dst, src))
        return 0;
    /* Pinned; or locked on one side alone. */
    if (error == -EBUSY || error == -EINVAL)
        error = pg_copy_in(uffd, dst, src, uffd->page_size, uffd->read_only);
    else if (error == -EEXIST)
        error = 0;
    if (!error)
        pg_empty_pages(src, uffd->page_size);
    return error;
}

int pg_move_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length, int later)
{
    uint64_t done = 0;
    int wake = 0, error = 0;

    if (!uffd->moves || uffd->wary)
        return pg_squeeze_in(uffd, dst, src, length, uffd->read_only);
    while (done < length) {
        int64_t moved = pg_move_some(uffd, PG_CALL_MOVE_IN, dst + done, src + done, length - done);
        if (moved < 0) {
            error = move_otherwise(uffd, (int)moved, dst + done, src + done);
            if (error)
                break;
            /* Moved without a word, or there before: nobody was woken. */
            moved = (int64_t)uffd->page_size;
            wake = 1;
        }
        done += (uint64_t)moved;
    }
    if (uffd->read_only && !later) {
        int failed = pg_show(uffd, dst, length);
        error = error ? error : failed;
    } else if (wake) {
        pg_wake(uffd, dst, length);
    }
    return error;
}

int pg_move_out(struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                struct pg_pages *pages)
{
    uint64_t done = 0, page = uffd->page_size;

    *pages = (struct pg_pages){{0}};
    if (!uffd->moves)
        return pg_remap_out(uffd, dst, src, length, pages);
    while (done < length) {
        int64_t moved = pg_move_some(uffd, PG_CALL_MOVE_OUT, dst + done, src + done, length - done);
        int there = moved > 0;
        if (moved < 0) {
            there = pg_has_moved(uffd, moved, dst + done, src + done);
            if (moved == -EBUSY && uffd->forked)
                return pg_part_out(uffd, dst + done, src + done, length - done,
                                   (unsigned)(done / page), pages);
            /* A hole: the user has discarded it. EFAULT: a page that could not be read again. */
            if (!there && moved != -ENOENT && moved != -EFAULT)
                return (int)moved;
            moved = (int64_t)page;
        }
        if (there)
            pg_add(pages, (unsigned)(done / page), (unsigned)((uint64_t)moved / page));
        done += (uint64_t)moved;
    }
    return 0;
}

int pg_bring_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                int protect)
{
    uint64_t page = uffd->page_size, from, run;
    unsigned count = (unsigned)(length / page);
    struct pg_pages pages;
    int error = pg_pages_in(uffd, src, length, &pages);

    for (unsigned first = 0, end; first < count && !error; first = end) {
        for (end = first; end < count && pg_has(&pages, end); end++)
            ;
        from = first * page;
        run = (end - first) * page;
        if (run && protect)
            error = pg_squeeze_in(uffd, dst + from, src + from, run, 1);
        else if (run)
            error = pg_move_in(uffd, dst + from, src + from, run, 0);
        else
            end = first + 1;
    }
    return error;
}

int pg_protect(const struct pg_uffd *uffd, uint64_t start, uint64_t length, int protect)
{
    struct pm_uffdio_writeprotect arg = {.range = {start, length}, .mode = protect ? 1 : 0};

    while (ioctl(uffd->region, PM_UFFDIO_WRITEPROTECT, &arg))
        if (errno != EAGAIN)
            return -errno;
    return 0;
}

void pg_wake(const struct pg_uffd *uffd, uint64_t start, uint64_t length)
{
    struct pm_uffdio_range arg = {start, length};

    ioctl(uffd->region, PM_UFFDIO_WAKE, &arg);
}

int pg_poison(struct pg_uffd *uffd, uint64_t start, uint64_t length)
{
    uint64_t done = 0, most = length;
    int error = 0;

    if (!uffd->moves)
        return pg_map_poison(uffd, start, length);
    while (done < length && !error) {
        uint64_t left = length - done < most ? length - done : most;
        struct pm_uffdio_poison arg = {.range = {start + done, left}};
        if (!ioctl(uffd->region, PM_UFFDIO_POISON, &arg))
            done += left;
        else if (arg.updated > 0)
            done += (uint64_t)arg.updated;
        else if (errno == EEXIST)
            done += uffd->page_size;
        else if (errno == ENOENT && left > uffd->page_size)
            most = uffd->page_size; /* as in pg_copy_in */
        else if (errno != EAGAIN)
            error = -errno;
    }
    pg_wake(uffd, start, length);
    return error;
}

int pg_each_found(const struct pg_uffd *uffd, uint64_t *at, uint64_t end, pg_found *function,
                  void *argument)
{
    enum { FOUND = 128 };
    struct pm_page_region runs[FOUND];
    int error = 0;

    while (*at < end && !error) {
        struct pm_scan_arg arg = {.size = sizeof arg,
                                  .start = *at,
                                  .end = end,
                                  .vec = (uint64_t)(uintptr_t)runs,
                                  .vec_len = FOUND,
                                  .category_anyof_mask = PM_PAGE_IS_PRESENT | PM_PAGE_IS_SWAPPED,
                                  /* In which all agree, so that a run comes as one. */
                                  .return_mask = PM_PAGE_IS_FILE};
        int count = ioctl(uffd->pagemap, PM_PAGEMAP_SCAN, &arg);

        if (count < 0)
            return -errno;
        for (int i = 0; i < count && !error; i++)
            error = function(argument, runs[i].start, runs[i].end);
        if (!error)
            *at = arg.walk_end;
    }
    return error;
}

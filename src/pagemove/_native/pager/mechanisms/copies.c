#define _GNU_SOURCE
#include "pager/mechanisms/copies.h"

#include <errno.h>
#include <sched.h>

#include "pager/mechanisms/trouble.h"
#include "uapi.h"

int pg_copy_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length, int protect)
{
    uint64_t done = 0, most = length;
    int wake = 0;

    while (done < length) {
        uint64_t left = length - done < most ? length - done : most;
        uint64_t portion = pg_portion(PG_CALL_COPY, left, uffd->page_size);
        struct pm_uffdio_copy arg = {
            .dst = dst + done, .src = src + done, .len = portion, .mode = protect ? 2 : 0};
        int trouble = pg_trouble(PG_CALL_COPY);
        if (trouble)
            return -trouble;
        if (!ioctl(uffd->region, PM_UFFDIO_COPY, &arg)) {
            done += portion;
        } else if (arg.copy > 0) {
            done += (uint64_t)arg.copy;
        } else if (errno == EEXIST) {
            done += uffd->page_size;
            wake = 1;
        } else if (errno == ENOENT && portion > uffd->page_size) {
            most = uffd->page_size; /* it lies in two mappings, by an advice of the user's */
        } else if (errno != EAGAIN) {
            return -errno;
        }
    }
    if (wake)
        pg_wake(uffd, dst, length);
    return 0;
}

int pg_squeeze_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                  int protect)
{
    uint64_t page = uffd->page_size;

    for (uint64_t done = 0; done < length; done += page) {
        int error = pg_copy_in(uffd, dst + done, src + done, page, protect);
        if (error)
            return error;
        pg_empty_pages(src + done, page);
    }
    return 0;
}

int pg_give_up_copied(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length)
{
    uint64_t page = uffd->page_size;
    struct pg_pages pages;
    int error = pg_pages_in(uffd, dst, length, &pages);

    for (unsigned i = 0; i < length / page && !error; i++)
        if (pg_has(&pages, i))
            pg_empty_pages(src + i * page, page);
    return error;
}

/* The bytes that were copied, or -errno of the first page. */
static int64_t copy_some(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length)
{
    struct pm_uffdio_copy arg = {.dst = dst, .src = src, .len = length};

    for (;;) {
        if (!ioctl(uffd->staging, PM_UFFDIO_COPY, &arg))
            return (int64_t)length;
        if (errno != EAGAIN)
            return arg.copy > 0 ? arg.copy : -errno;
        if (arg.copy > 0)
            return arg.copy;
        sched_yield();
    }
}

int pg_copy_out(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                struct pg_pages *pages)
{
    uint64_t page = uffd->page_size;
    unsigned count = (unsigned)(length / page), first = 0, end;
    struct pg_pages there;
    int error = pg_pages_in(uffd, src, length, &there);

    *pages = (struct pg_pages){{0}};
    while (first < count && !error) {
        int64_t copied = (int64_t)page;
        for (end = first; end < count && pg_has(&there, end); end++)
            ;
        if (end > first)
            copied = copy_some(uffd, dst + first * page, src + first * page, (end - first) * page);
        if (copied > 0 && end > first)
            pg_add(pages, first, (unsigned)((uint64_t)copied / page));
        /* EFAULT: discarded meanwhile, or it could not be read again. */
        if (copied < 0 && copied != -EFAULT)
            error = (int)copied;
        first += copied > 0 ? (unsigned)((uint64_t)copied / page) : 1;
    }
    return error;
}

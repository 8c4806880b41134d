/* What takes the place of UFFDIO_MOVE and UFFDIO_POISON in kernels without them.
 *
 * Out goes a block by mremap(MREMAP_DONTUNMAP) onto its slot: that moves the pages as atomically,
 * and leaves the region's mapping as it was. It takes mmap_lock exclusively, so all other faults of
 * the process wait meanwhile; it makes each outgoing slot a mapping of its own; and it does not
 * see that a page is pinned. In comes a block by copy.
 *
 * Poisoned pages are those of an empty file: touching them is SIGBUS too, and EFAULT for a system
 * call. But the user cannot take that away by MADV_DONTNEED. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/mechanisms/trouble.h"
#include "pager/mechanisms/uffd.h"
#include "uapi.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static void *at(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

int pg_is_poisoned(const struct pg_uffd *uffd, uint64_t address)
{
    uint64_t page = (address - uffd->base) / uffd->page_size;

    return uffd->poisoned && uffd->poisoned[page / 64] >> page % 64 & 1;
}

static void note(struct pg_uffd *uffd, uint64_t start, uint64_t length, int poisoned)
{
    for (uint64_t done = 0; done < length; done += uffd->page_size) {
        uint64_t page = (start + done - uffd->base) / uffd->page_size;
        uint64_t bit = UINT64_C(1) << page % 64;
        uffd->poisoned[page / 64] = (uffd->poisoned[page / 64] & ~bit) | (poisoned ? bit : 0);
    }
}

/* Remap a range, or where that is not one mapping any more, page by page. */
int pg_remap(uint64_t dst, uint64_t src, uint64_t length, uint64_t page)
{
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;

    if (mremap(at(src), length, length, flags, at(dst)) != MAP_FAILED)
        return 0;
    if (errno != EFAULT || length == page)
        return -errno;
    for (uint64_t done = 0; done < length; done += page)
        if (mremap(at(src + done), page, page, flags, at(dst + done)) == MAP_FAILED)
            return -errno;
    return 0;
}

int pg_remap_out(struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                 struct pg_pages *pages)
{
    int error;

    pg_unpoison(uffd, src, length);
    error = pg_trouble(PG_CALL_MOVE_OUT) ? -EBUSY : pg_remap(dst, src, length, uffd->page_size);
    if (error)
        return error;
    /* The userfaultfd of a mapping does not go along. */
    error = pg_register(uffd->staging, dst, length, PM_REGISTER_MODE_MISSING);
    return error ? error : pg_pages_in(uffd, dst, length, pages);
}

/* Room for a bit for each page of the region; an empty file. */
static int prepare(struct pg_uffd *uffd)
{
    void *bits;

    if (uffd->poisoned)
        return 0;
    uffd->empty = memfd_create("pagemove-poison", MFD_CLOEXEC);
    if (uffd->empty < 0)
        return -errno;
    bits = mmap(NULL, uffd->length / uffd->page_size / 8 + 8, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bits == MAP_FAILED) {
        close(uffd->empty);
        uffd->empty = -1;
        return -ENOMEM;
    }
    uffd->poisoned = bits;
    return 0;
}

int pg_map_poison(struct pg_uffd *uffd, uint64_t start, uint64_t length)
{
    uint64_t page = uffd->page_size;
    int error = prepare(uffd);

    for (uint64_t done = 0; done < length && !error; done += page) {
        uint64_t address = start + done;
        if (pg_is_answered(uffd, address))
            continue;
        if (mmap(at(address), page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, uffd->empty,
                 0) == MAP_FAILED) {
            error = -errno;
            break;
        }
        madvise(at(address), page, MADV_DONTFORK);
        note(uffd, address, page, 1);
    }
    pg_wake(uffd, start, length);
    return error;
}

void pg_unpoison(struct pg_uffd *uffd, uint64_t start, uint64_t length)
{
    uint64_t page = uffd->page_size;

    if (!uffd->poisoned)
        return;
    for (uint64_t done = 0; done < length; done += page) {
        uint64_t address = start + done;
        if (!pg_is_poisoned(uffd, address))
            continue;
        /* Not to be touched before faults are reported: it would be zeros. */
        if (mmap(at(address), page, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
            continue;
        madvise(at(address), page, MADV_DONTFORK);
        madvise(at(address), page, uffd->advice);
        if (!uffd->dumped)
            madvise(at(address), page, MADV_DONTDUMP);
        madvise(at(address), page, MADV_UNMERGEABLE);
        if (pg_register(uffd->region, address, page, uffd->mode) ||
            mprotect(at(address), page, PROT_READ | PROT_WRITE))
            continue; /* no memory: a touch is SIGSEGV */
        note(uffd, address, page, 0);
    }
}

int pg_discard(struct pg_uffd *uffd, uint64_t start, uint64_t length)
{
    pg_unpoison(uffd, start, length);
    return madvise(at(start), length, MADV_DONTNEED_LOCKED) ? -errno : 0;
}

int pg_discard_unlocked(uint64_t start, uint64_t length)
{
    return madvise(at(start), length, MADV_DONTNEED) ? -errno : 0;
}

#define _GNU_SOURCE
#include "look.h"

#include <errno.h>
#include <string.h>

#include "uapi.h"

#define ANY_PAGE (PM_PAGE_IS_PRESENT | PM_PAGE_IS_SWAPPED)

struct pattern {
    uint64_t anyof, all, none;
};

/* Find the first stretch of matching pages in [start, end). 1 and *region, 0 for none, or -errno.
 */
static int scan(struct pm_process *process, uint64_t start, uint64_t end, struct pattern pattern,
                struct pm_page_region *region)
{
    struct pm_scan_arg arg = {
        .size = sizeof arg,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)region,
        .vec_len = 1,
        .category_anyof_mask = pattern.anyof,
        .category_mask = pattern.all | pattern.none,
        .category_inverted = pattern.none,
        /* A category in which all pages of a mapping agree, so that a stretch comes as one. */
        .return_mask = PM_PAGE_IS_WPALLOWED,
    };
    int found;

    if (process->pagemap < 0)
        return -EBADF;
    found = ioctl(process->pagemap, PM_PAGEMAP_SCAN, &arg);
    return found < 0 ? -errno : found;
}

static uint64_t scan_prefix(struct pm_process *process, uint64_t start, uint64_t length,
                            struct pattern pattern)
{
    struct pm_page_region region;
    uint64_t at = start, end = start + length;

    while (at < end && scan(process, at, end, pattern, &region) == 1 && region.start == at)
        at = region.end;
    return at - start;
}

int pm_look_resident(uint64_t start, uint64_t length, unsigned char *vector)
{
    return mincore((void *)(uintptr_t)start, length, vector) ? -errno : 0;
}

/* UFFDIO_MOVE from a page that is always a hole moves nothing and looks at its destination first:
 * the cheapest exact answer there is for one page. It needs the page's mapping to be registered
 * with us; else -1, and the block is remembered, so that the next look does not try in vain.
 * Measured on 6.18.44: 620 ns, mincore 940 ns. */
static int look_by_move(struct pm_process *process, uint64_t address)
{
    struct pm_uffdio_move arg = {
        .dst = address, .src = process->scratch, .len = process->page_size};
    uint64_t block = address >> PM_STRIPE_SHIFT;
    uint64_t *unregistered = &process->unregistered[block % PM_STRIPES];

    if (!process->scratch || __atomic_load_n(unregistered, __ATOMIC_RELAXED) == block)
        return -1;
    ioctl(process->uffd, PM_UFFDIO_MOVE, &arg);
    if (errno == EEXIST)
        return 1;
    if (errno == ENOENT)
        return 0;
    if (errno == EINVAL)
        __atomic_store_n(unregistered, block, __ATOMIC_RELAXED);
    return -1;
}

int pm_look_mapped(struct pm_process *process, uint64_t page)
{
    unsigned char vector;

    return pm_look_resident(page, process->page_size, &vector) != -ENOMEM;
}

size_t pm_leading_resident(const unsigned char *vector, size_t pages)
{
    const uint64_t low_bits = UINT64_C(0x0101010101010101);
    uint64_t word;
    size_t i = 0;

    /* mincore(2) promises the lowest bit of each byte and nothing of the others. */
    for (; i + sizeof word <= pages; i += sizeof word) {
        memcpy(&word, vector + i, sizeof word);
        if ((word & low_bits) != low_bits)
            break;
    }
    while (i < pages && (vector[i] & 1))
        i++;
    return i;
}

uint64_t pm_look_there(struct pm_process *process, uint64_t start, uint64_t length)
{
    unsigned char vector[4096];
    uint64_t page = process->page_size, at = 0;

    if (length == page) {
        int there = look_by_move(process, start);
        if (there >= 0)
            return there ? page : 0;
    }
    while (at < length) {
        uint64_t pages = (length - at) / page, resident;
        if (pages > sizeof vector)
            pages = sizeof vector;
        if (pm_look_resident(start + at, pages * page, vector))
            break;
        resident = pm_leading_resident(vector, pages);
        at += resident * page;
        if (resident < pages)
            break;
    }
    /* mincore sees neither swapped pages nor markers. */
    if (at < length)
        at += scan_prefix(process, start + at, length - at, (struct pattern){.anyof = ANY_PAGE});
    return at;
}

int64_t pm_look_holes(struct pm_process *process, uint64_t start, uint64_t length)
{
    struct pm_page_region region;
    int found = scan(process, start, start + length, (struct pattern){.anyof = ANY_PAGE}, &region);

    if (found < 0)
        return found;
    return (int64_t)(found ? region.start - start : length);
}

uint64_t pm_look_filled(struct pm_process *process, uint64_t start, uint64_t length)
{
    return scan_prefix(process, start, length,
                       (struct pattern){.anyof = ANY_PAGE, .none = PM_PAGE_IS_PFNZERO});
}

int pm_look_huge_zero(struct pm_process *process, uint64_t start, uint64_t length)
{
    struct pm_page_region region;

    return scan(process, start, start + length,
                (struct pattern){.all = PM_PAGE_IS_PFNZERO | PM_PAGE_IS_HUGE}, &region);
}

int pm_look_one_vma(struct pm_process *process, uint64_t start, uint64_t length)
{
    struct pm_procmap_query query = {.size = sizeof query, .query_addr = start};

    if (process->maps < 0)
        return -EBADF;
    if (ioctl(process->maps, PM_PROCMAP_QUERY, &query))
        return errno == ENOENT ? 0 : -errno;
    return query.vma_end - start >= length;
}

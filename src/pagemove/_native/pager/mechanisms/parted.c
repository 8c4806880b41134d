/* Pages that a forked child has, or had, as well: UFFDIO_MOVE refuses them until they are written
 * to, and so it does pages that are pinned for I/O, which must stay.
 *
 * Which of both it is shows elsewhere: mremap(MREMAP_DONTUNMAP) takes the pages to spare room, as
 * atomically as a move. There, where nobody waits for a missing page, each is made this process's
 * own, by a copy if the child still has it. Then it moves. What still does not is pinned, and goes
 * back to where it was as it came, for a copy would not be what the device writes to. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/copies.h"
#include "pager/mechanisms/guard.h"
#include "pager/mechanisms/staging.h"
#include "pager/mechanisms/trouble.h"
#include "pager/mechanisms/uffd.h"
#include "uapi.h"

/* ns between tries to have memory for what is nowhere else. */
#define PAUSE 1000000

static int make_spare(struct pg_uffd *uffd, uint64_t length)
{
    if (uffd->spare)
        return 0;
    uffd->spare = pg_map_aligned(length, uffd->dumped);
    uffd->spare_length = length;
    return uffd->spare ? 0 : -ENOMEM;
}

/* Take pages back to the region, all of which are there. That makes a mapping there anew, for which
 * faults are to be reported like those around it. */
static void put_run_in_place(const struct pg_uffd *uffd, uint64_t dst, uint64_t src,
                             uint64_t length)
{
    if (!pg_remap(dst, src, length, uffd->page_size)) {
        /* No memory: a touch is to be SIGSEGV, and not zeros. */
        if (pg_register(uffd->region, dst, length, uffd->mode))
            mprotect((void *)(uintptr_t)dst, length, PROT_NONE);
        return;
    }
    /* No room for another mapping. */
    while (pg_bring_in(uffd, dst, src, length, 0))
        pg_sleep(PAUSE);
}

/* Where one is missing the mapping stays: a touch of the new one would find zeros, before it is
 * known that faults are to be reported. */
static void put_in_place(const struct pg_uffd *uffd, uint64_t dst, uint64_t src,
                         const struct pg_pages *there, unsigned first, unsigned count)
{
    uint64_t page = uffd->page_size;

    for (unsigned at = first, end; at < count; at = end + 1) {
        for (end = at; end < count && pg_has(there, end); end++)
            ;
        if (end > at)
            put_run_in_place(uffd, dst + at * page, src + at * page, (end - at) * page);
    }
}

/* Move pages that there are out of the spare room. Bytes; less: the next one stays there. */
static uint64_t move_own(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length)
{
    uint64_t done = 0;
    int64_t moved;

    if (madvise((void *)(uintptr_t)src, length, MADV_POPULATE_WRITE))
        return 0;
    for (; done < length; done += (uint64_t)moved) {
        moved = pg_move_some(uffd, PG_CALL_MOVE_OUT, dst + done, src + done, length - done);
        if (moved < 0 && !pg_has_moved(uffd, moved, dst + done, src + done))
            break;
        moved = moved < 0 ? (int64_t)uffd->page_size : moved;
    }
    return done;
}

int pg_part_out(struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length, unsigned first,
                struct pg_pages *pages)
{
    uint64_t page = uffd->page_size, done;
    unsigned count = (unsigned)(length / page), end;
    struct pg_pages there;

    if (make_spare(uffd, first * page + length) || pg_remap(uffd->spare, src, length, page))
        return -EBUSY;
    /* The userfaultfd of a mapping does not go along. */
    if (pg_pages_in(uffd, uffd->spare, length, &there)) {
        put_run_in_place(uffd, src, uffd->spare, length);
        return -EBUSY;
    }
    if (pg_register(uffd->staging, uffd->spare, length, PM_REGISTER_MODE_MISSING)) {
        put_in_place(uffd, src, uffd->spare, &there, 0, count);
        return -EBUSY;
    }
    for (unsigned at = 0; at < count; at = end) {
        for (end = at; end < count && pg_has(&there, end); end++)
            ;
        if (end == at) {
            end++;
            continue;
        }
        done = move_own(uffd, dst + at * page, uffd->spare + at * page, (end - at) * page);
        pg_add(pages, first + at, (unsigned)(done / page));
        done += at * page;
        if (done < end * page) {
            put_in_place(uffd, src, uffd->spare, &there, (unsigned)(done / page), count);
            return -EBUSY;
        }
    }
    return 0;
}

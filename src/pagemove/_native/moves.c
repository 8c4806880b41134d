#define _GNU_SOURCE
#include "moves.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#include "known.h"
#include "look.h"
#include "paged.h"
#include "uapi.h"

/* The longest stretch looked at before one kernel call: 4096 small pages. */
#define LOOK_AHEAD(process) ((process)->page_size << 12)

static int64_t kernel_move(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
{
    for (;;) {
        /* Early checks leave .move alone, so it has to start at 0. The kernel's own
         * ALLOW_SRC_HOLES is never passed: with the stale EAGAIN it can spin forever. */
        struct pm_uffdio_move arg = {.dst = dst, .src = src, .len = length};

        if (!ioctl(process->uffd, PM_UFFDIO_MOVE, &arg))
            return (int64_t)length;
        if (errno != EAGAIN)
            return -errno;
        if (arg.move > 0)
            return arg.move;
        sched_yield();
    }
}

/* Move pages that pm_look_pair has seen, and see through the kernel's stale EAGAIN.
 *
 * An affected kernel may move a page and then find it at the destination and say EEXIST, or leave
 * it out of a short count. If the source page was there and the destination a hole before, and it
 * is the other way round now, the page was moved. */
static int64_t move_known(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                          int zero)
{
    int64_t moved = kernel_move(process, dst, src, length);
    uint64_t done = moved > 0 ? (uint64_t)moved : 0;

    if (done == length || (moved < 0 && moved != -EEXIST && moved != -ENOENT))
        return moved;
    done += pm_look_moved(process, dst + done, src + done, length - done, zero);
    return done ? (int64_t)done : moved;
}

static size_t leading(const struct pm_seen *seen, uint64_t page, uint64_t start, uint64_t length,
                      int there)
{
    const unsigned char *vector = seen->vector + (start - seen->start) / page;
    size_t pages = length / page, i = 0;

    if (there)
        return pm_leading_resident(vector, pages);
    while (i < pages && !(vector[i] & 1))
        i++;
    return i;
}

static int has_seen(const struct pm_seen *seen, uint64_t start, uint64_t length)
{
    return seen->vector && start >= seen->start && start + length <= seen->end;
}

/* pm_look_pair, from what is known if that will do. */
static int64_t look_pair(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                         uint64_t src, uint64_t length, int *zero)
{
    uint64_t page = process->page_size, both;

    if (known && has_seen(&known->dst, dst, length) && has_seen(&known->src, src, length)) {
        both = leading(&known->src, page, src, length, 1) * page;
        if (both)
            both = leading(&known->dst, page, dst, both, 0) * page;
        /* Such a look sees neither swapped pages nor markers: look again before saying no. Nor
         * does it see the zero page in the source. */
        *zero = 0;
        if (both)
            return (int64_t)both;
    }
    return pm_look_pair(process, dst, src, length, zero);
}

static void mark(const struct pm_seen *seen, uint64_t page, uint64_t start, uint64_t length,
                 unsigned char there)
{
    uint64_t from = start > seen->start ? start : seen->start;
    uint64_t to = start + length < seen->end ? start + length : seen->end;

    if (seen->vector && from < to)
        memset(seen->vector + (from - seen->start) / page, there, (to - from) / page);
}

static void note_moved(const struct pm_known *known, uint64_t page, uint64_t dst, uint64_t src,
                       uint64_t length, int zero)
{
    mark(&known->src, page, src, length, 0);
    mark(&known->dst, page, src, length, 0);
    mark(&known->src, page, dst, length, !zero);
    mark(&known->dst, page, dst, length, 1);
}

/* Whether both ranges lie within one mapping each, asked when the kernel is shown only a part. */
static int inside_mappings(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
{
    return pm_look_one_vma(process, dst, length) != 0 && pm_look_one_vma(process, src, length) != 0;
}

/* How much to look at before one kernel call. */
static uint64_t look_ahead(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
{
    uint64_t huge = process->huge_page_size, want = LOOK_AHEAD(process), beyond;

    if (length < want)
        want = length;
    /* Where the ranges overlap, a page that has moved may have another in its place at once. */
    if (dst < src && src - dst < want)
        want = src - dst;
    /* Do not split a huge page that could move whole. */
    if (want < length && huge && !((dst ^ src) & (huge - 1))) {
        beyond = (src + want) & (huge - 1);
        want -= beyond < want ? beyond : 0;
    }
    return want;
}

/* One step on a kernel with the stale EAGAIN: it is shown only pages that were looked at. */
static int64_t step_guarded(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                            uint64_t src, uint64_t length, int *inside)
{
    uint64_t want = look_ahead(process, dst, src, length);
    int zero;
    int64_t both = look_pair(process, known, dst, src, want, &zero), moved;

    if (both < 0)
        return both;
    if ((uint64_t)both < length && !*inside) {
        if (!inside_mappings(process, dst, src, length))
            return -EINVAL;
        *inside = 1;
    }
    moved = move_known(process, dst, src, (uint64_t)both, zero);
    if (moved > 0 && known)
        note_moved(known, process->page_size, dst, src, (uint64_t)moved, zero);
    return moved;
}

/* The kernel says ENOENT of a hole, and of an address where nothing is mapped. */
static int unmapped(struct pm_process *process, uint64_t dst, uint64_t src)
{
    return !pm_look_mapped(process, dst) || !pm_look_mapped(process, src);
}

/* One step where holes are allowed: skip a gap, or move a run. The kernel's flag would allocate
 * page tables for every hole on both sides, besides the reason given in kernel_move. */
static int64_t step_holes(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                          int *inside)
{
    int guarded = process->defects & PM_DEFECT_STALE_EAGAIN;
    int64_t gap = pm_look_holes(process, src, length), free, moved;

    if (gap < 0)
        return gap;
    if (gap) {
        free = pm_look_holes(process, dst, (uint64_t)gap);
        if (free <= 0)
            return free ? free : -EEXIST;
        if (*inside)
            return free;
        /* Nothing was there to move: this asks the kernel whether it might be. A page that has
         * arrived since may move or stay, for it was a hole when it was looked at. */
        if (guarded && !inside_mappings(process, dst, src, length))
            return -EINVAL;
        moved = kernel_move(process, dst, src, guarded ? process->page_size : length);
        if (moved < 0 && moved != -ENOENT && moved != -EEXIST && moved != -EBUSY)
            return moved;
        if (moved == -ENOENT && unmapped(process, dst, src))
            return -EINVAL;
        *inside = 1;
        return moved > free ? moved : free;
    }
    moved = guarded ? step_guarded(process, NULL, dst, src, length, inside)
                    : kernel_move(process, dst, src, length);
    if (moved != -ENOENT)
        return moved;
    /* Discarded between the look and the move: a hole, so look again. */
    return unmapped(process, dst, src) ? -EINVAL : 0;
}

/* The pager of a region would not know: what was written there would be lost, and the same block be
 * there twice. The kernel would do it, with a region as the source. */
static int is_paged(uint64_t dst, uint64_t src, uint64_t length)
{
    return pm_paged_at(dst, length) || pm_paged_at(src, length);
}

static int bad_arguments(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                         unsigned flags)
{
    uint64_t below = process->page_size - 1;

    return ((dst | src | length) & below) || !length || dst + length < dst || src + length < src ||
           (flags & ~(unsigned)PM_ALLOW_SRC_HOLES) || (dst >= src && dst < src + length);
}

/* On a kernel with CVE-2026-31397, a huge zero page must not be moved whole. */
static int refuse_huge_zero(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
{
    uint64_t huge = process->huge_page_size;

    if (!(process->defects & PM_DEFECT_HUGE_ZERO) || !huge || (dst ^ src) & (huge - 1) ||
        length < huge)
        return 0;
    return pm_look_huge_zero(process, src, length) != 0;
}

/* Split the huge page that a source page belongs to. 0, or -EBUSY: it is in use elsewhere, or
 * locked in memory. */
static int split(struct pm_process *process, uint64_t page)
{
    enum { TRIES = 3 }; /* reclaim and migration refer to pages too, for a moment */

    for (int i = 0; i < TRIES; i++) {
        /* It splits a huge page that is advised on in part, once, and leaves it if it cannot. */
        if (madvise((void *)(uintptr_t)page, process->page_size, MADV_COLD))
            return -EBUSY;
        if (pm_look_small(process, page, process->page_size))
            return 0;
        sched_yield();
    }
    return -EBUSY;
}

/* On a kernel with split-spin: how much can be moved without leaving it to the kernel to split a
 * huge page, which it may try forever. -EBUSY or -EEXIST: nothing.
 *
 * What this cannot see: that a huge page which moves whole will be split, because the destination
 * has a page table; and huge pages that are mapped page by page already. */
static int64_t split_first(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
{
    uint64_t huge = process->huge_page_size, room;
    int64_t small;

    if (!huge)
        return (int64_t)length;
    room = huge - (src & (huge - 1));
    if (!((dst ^ src) & (huge - 1))) {
        if (room == huge && length >= huge)
            return (int64_t)(length & ~(huge - 1));
        if (room < length)
            length = room;
    }
    small = pm_look_small(process, src, length);
    if (small)
        return small < 0 ? (int64_t)length : small;
    if (pm_look_there(process, dst, process->page_size))
        return -EEXIST;
    if (split(process, src))
        return -EBUSY;
    return (int64_t)(room < length ? room : length);
}

static int64_t step(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                    uint64_t src, uint64_t length, unsigned flags, int *inside)
{
    if (flags & PM_ALLOW_SRC_HOLES)
        return step_holes(process, dst, src, length, inside);
    if (process->defects & PM_DEFECT_STALE_EAGAIN)
        return step_guarded(process, known, dst, src, length, inside);
    return kernel_move(process, dst, src, length);
}

static int64_t move_all(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                        uint64_t src, uint64_t length, unsigned flags)
{
    int splits = process->defects & PM_DEFECT_SPLIT_SPIN && !(known && known->no_huge);
    uint64_t done = 0, ready = splits ? 0 : length; /* nothing has to be split up to there */
    int64_t moved = 0;
    int inside = 0;

    while (done < length) {
        uint64_t to = dst + done, from = src + done, rest = length - done;

        if (done == ready) {
            moved = split_first(process, to, from, rest);
            if ((uint64_t)moved != rest && !inside && !inside_mappings(process, to, from, rest))
                moved = -EINVAL;
            if (moved < 0)
                break;
            ready += (uint64_t)moved;
        }
        moved = step(process, known, to, from, ready - done, flags, &inside);
        if (moved < 0)
            break;
        done += (uint64_t)moved;
    }
    return done ? (int64_t)done : moved;
}

int64_t pm_move_with(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                     uint64_t src, uint64_t length, unsigned flags, int wait)
{
    int guarded = process->defects & PM_DEFECT_STALE_EAGAIN;
    uint64_t stripes = 0;
    int64_t moved;

    if (process->defects & PM_DEFECT_REFUSE)
        return -ENOSYS;
    if (bad_arguments(process, dst, src, length, flags) || is_paged(dst, src, length))
        return -EINVAL;
    if (refuse_huge_zero(process, dst, src, length))
        return -EOPNOTSUPP;
    if (flags & PM_ALLOW_SRC_HOLES && process->pagemap < 0)
        return -EOPNOTSUPP;
    if (guarded && !(known && known->locked)) {
        /* What was looked at must not be moved by another of our threads before the kernel is
         * called, or both would believe that they moved it. */
        stripes = pm_stripes_of(dst, length) | pm_stripes_of(src, length);
        if (pm_stripes_lock(process, stripes, wait))
            return -EWOULDBLOCK;
    }
    moved = move_all(process, known, dst, src, length, flags);
    pm_stripes_unlock(process, stripes);
    return moved;
}

int64_t pm_move(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                unsigned flags, int wait)
{
    return pm_move_with(process, NULL, dst, src, length, flags, wait);
}

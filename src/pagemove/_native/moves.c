#define _GNU_SOURCE
#include "moves.h"

#include <errno.h>
#include <sched.h>

#include "guard.h"
#include "look.h"
#include "paged.h"
#include "uapi.h"

int64_t pm_kernel_move(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
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

int pm_inside_mappings(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
{
    return pm_look_one_vma(process, dst, length) != 0 && pm_look_one_vma(process, src, length) != 0;
}

/* The kernel says ENOENT of a hole, and of an address where nothing is mapped. */
static int unmapped(struct pm_process *process, uint64_t dst, uint64_t src)
{
    return !pm_look_mapped(process, dst) || !pm_look_mapped(process, src);
}

/* One step where holes are allowed: skip a gap, or move a run. The kernel's flag would allocate
 * page tables for every hole on both sides, besides the reason given in pm_kernel_move. */
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
        if (guarded && !pm_inside_mappings(process, dst, src, length))
            return -EINVAL;
        moved = pm_kernel_move(process, dst, src, guarded ? process->page_size : length);
        if (moved < 0 && moved != -ENOENT && moved != -EEXIST && moved != -EBUSY)
            return moved;
        if (moved == -ENOENT && unmapped(process, dst, src))
            return -EINVAL;
        *inside = 1;
        return moved > free ? moved : free;
    }
    moved = guarded ? pm_step_guarded(process, NULL, dst, src, length, inside)
                    : pm_kernel_move(process, dst, src, length);
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

static int64_t step(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                    uint64_t src, uint64_t length, unsigned flags, int *inside)
{
    if (flags & PM_ALLOW_SRC_HOLES)
        return step_holes(process, dst, src, length, inside);
    if (process->defects & PM_DEFECT_STALE_EAGAIN)
        return pm_step_guarded(process, known, dst, src, length, inside);
    return pm_kernel_move(process, dst, src, length);
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
            moved = pm_split_first(process, to, from, rest);
            if ((uint64_t)moved != rest && !inside && !pm_inside_mappings(process, to, from, rest))
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
    if (pm_refuse_huge_zero(process, dst, src, length))
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

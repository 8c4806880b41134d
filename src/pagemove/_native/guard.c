#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>

#include "look.h"

uint32_t pm_defects_of(const char *release)
{
    int major = 0, minor = 0, patch = 0, parsed = 0, kept_at_zero;
    uint32_t defects = 0;

    /* "6.12.0-55.el10": a distribution that stays at .0 and says nothing of the fixes it has. */
    kept_at_zero = sscanf(release, "%d.%d.%d%n", &major, &minor, &patch, &parsed) == 3 &&
                   patch == 0 && release[parsed] == '-' && release[parsed + 1] >= '0' &&
                   release[parsed + 1] <= '9';
#define AT_LEAST(a, b) (major > (a) || (major == (a) && minor >= (b)))
#define SERIES(a, b) (major == (a) && minor == (b))
    if (!AT_LEAST(6, 8) || (SERIES(6, 8) && patch < 8))
        defects |= PM_DEFECT_REFUSE;
    if (SERIES(6, 16) || SERIES(6, 17) || (SERIES(6, 18) && patch < 20) ||
        (SERIES(6, 19) && patch < 10) || kept_at_zero)
        defects |= PM_DEFECT_HUGE_ZERO;
    /* This and the next are fixed in the releases named at the latest; of others in the same
     * series it is not known. */
    if (kept_at_zero || (AT_LEAST(6, 18) && !((SERIES(7, 2) && patch >= 6) || AT_LEAST(7, 3))))
        defects |= PM_DEFECT_STALE_EAGAIN;
    if (!(defects & PM_DEFECT_REFUSE) &&
        (kept_at_zero ||
         !((SERIES(6, 18) && patch >= 44) || (SERIES(7, 3) && patch >= 4) || AT_LEAST(7, 4))))
        defects |= PM_DEFECT_SPLIT_SPIN;
#undef AT_LEAST
#undef SERIES
    return defects;
}

/* Ubuntu's releases stay at x.y.0 whatever fixes they have; their signature ends with the stable
 * release that they have caught up with. */
uint32_t pm_running_defects(void)
{
    char signature[256] = "";
    struct utsname name;
    FILE *file = fopen("/proc/version_signature", "re");
    int major, minor, patch;
    char *last;

    if (file) {
        if (!fgets(signature, sizeof signature, file))
            signature[0] = 0;
        fclose(file);
    }
    last = strrchr(signature, ' ');
    if (last && sscanf(last, "%d.%d.%d", &major, &minor, &patch) == 3)
        return pm_defects_of(last + 1);
    return uname(&name) ? PM_DEFECT_REFUSE : pm_defects_of(name.release);
}

/* The longest stretch looked at before one kernel call: 4096 small pages. */
#define LOOK_AHEAD(process) ((process)->page_size << 12)

/* Move pages that pm_look_pair has seen, and see through the kernel's stale EAGAIN.
 *
 * An affected kernel may move a page and then find it at the destination and say EEXIST, or leave
 * it out of a short count. If the source page was there and the destination a hole before, and it
 * is the other way round now, the page was moved. */
static int64_t move_known(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                          int zero)
{
    int64_t moved = pm_kernel_move(process, dst, src, length);
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

int64_t pm_step_guarded(struct pm_process *process, const struct pm_known *known, uint64_t dst,
                        uint64_t src, uint64_t length, int *inside)
{
    uint64_t want = look_ahead(process, dst, src, length);
    int zero;
    int64_t both = look_pair(process, known, dst, src, want, &zero), moved;

    if (both < 0)
        return both;
    if ((uint64_t)both < length && !*inside) {
        if (!pm_inside_mappings(process, dst, src, length))
            return -EINVAL;
        *inside = 1;
    }
    moved = move_known(process, dst, src, (uint64_t)both, zero);
    if (moved > 0 && known)
        note_moved(known, process->page_size, dst, src, (uint64_t)moved, zero);
    return moved;
}

int pm_refuse_huge_zero(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
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

int64_t pm_split_first(struct pm_process *process, uint64_t dst, uint64_t src, uint64_t length)
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

/* move_many: runs of pages, and one look for many of them. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "known.h"
#include "look.h"
#include "moves.h"

/* Index arrays stay the caller's, and another thread may write to them: read each index once. */
static int64_t page_at(const int64_t *pages, size_t i)
{
    return __atomic_load_n(&pages[i], __ATOMIC_RELAXED);
}

static int outside(int64_t page, int64_t limit)
{
    return page < 0 || page >= limit;
}

int64_t pm_first_outside(const int64_t *pages, size_t count, int64_t limit)
{
    for (size_t i = 0; i < count; i++)
        if (outside(page_at(pages, i), limit))
            return (int64_t)i;
    return -1;
}

/* A run of consecutive pages on both sides, to be moved by one call. */
struct run {
    uint64_t dst, src;
    size_t count;
};

/* The longest run at `first`, up to `most` pages. 0, or -ERANGE. */
static int find_run(const struct pm_many *many, size_t first, size_t most, struct run *run)
{
    int64_t dst = page_at(many->dst_pages, first), src = page_at(many->src_pages, first);
    size_t n = 1;

    if (outside(dst, many->dst_limit) || outside(src, many->src_limit))
        return -ERANGE;
    while (n < most && page_at(many->dst_pages, first + n) == dst + (int64_t)n &&
           page_at(many->src_pages, first + n) == src + (int64_t)n &&
           dst + (int64_t)n < many->dst_limit && src + (int64_t)n < many->src_limit)
        n++;
    run->dst = many->dst + (uint64_t)dst * many->unit;
    run->src = many->src + (uint64_t)src * many->unit;
    /* Page by page, a page moved early may be a source later in the same run: stop before that. */
    if (run->dst > run->src && run->dst - run->src < n * many->unit) {
        n = (run->dst - run->src) / many->unit;
        n = n ? n : 1;
    }
    run->count = n;
    return 0;
}

/* On an affected kernel: one look for many moves. It costs a few ns for each page of the span, or
 * 40 to 100 for each page listed, where a look of its own costs hundreds: so it pays while the
 * pages are not spread too thin. A run that has a look of its own is asked about as cheaply as 6
 * pages. */
enum {
    WINDOW = 2048,
    PAGES_PER_LOOK = 64,
    PAGES_PER_LISTED = 512, /* a byte for each is cleared */
    LISTED = 48,            /* listing is cheaper than the span from here on */
    SHORT_RUN = 4,
    SPARSE = 3,
    LONG_RUN = 64,
};

struct window {
    struct pm_known known;
    size_t end; /* index after the last one looked at */
    uint64_t stripes;
};

static void window_close(struct pm_process *process, struct window *window)
{
    pm_stripes_unlock(process, window->stripes);
    window->stripes = 0;
    window->known.locked = 0;
    window->known.src.end = window->known.src.start;
    window->known.dst.end = window->known.dst.start;
}

struct span {
    int64_t low, high;
};

static void widen(struct span *span, int64_t page)
{
    span->low = page < span->low ? page : span->low;
    span->high = page > span->high ? page : span->high;
}

/* Make room to see the pages of a span. 0, or -1: it would not pay, or there is no memory. */
static int see(struct pm_seen *seen, uint64_t base, const struct span *span, uint64_t unit,
               uint64_t page, uint64_t most)
{
    uint64_t pages = (uint64_t)(span->high - span->low + 1) * (unit / page);

    if (pages > most)
        return -1;
    if (pages > seen->room) {
        unsigned char *vector = realloc(seen->vector, pages);
        if (!vector)
            return -1;
        seen->vector = vector;
        seen->room = pages;
    }
    seen->start = base + (uint64_t)span->low * unit;
    seen->end = seen->start + pages * page;
    return 0;
}

/* One side of the moves in a window: where, and by which indices. */
struct side {
    struct pm_seen *seen;
    uint64_t base;
    const int64_t *pages;
    size_t first, count;
};

/* Look at the pages listed only. Of the others `unseen` is noted, as of what is neither a hole nor
 * a page of its own: that they have to be looked at again. */
static int look_at_listed(struct pm_process *process, const struct side *side, unsigned char unseen)
{
    enum { AT_ONCE = 256 };
    void *pages[AT_ONCE];
    int status[AT_ONCE], error = 0;
    struct pm_seen *seen = side->seen;
    uint64_t page = process->page_size, span = (seen->end - seen->start) / page;
    size_t asked = 0;

    memset(seen->vector, unseen, span);
    for (size_t i = 0; i < side->count && !error; i++) {
        uint64_t at = side->base + (uint64_t)page_at(side->pages, side->first + i) * page;

        /* The index may have changed since the span was found. */
        if ((at - seen->start) / page < span)
            pages[asked++] = (void *)(uintptr_t)at;
        if (asked < AT_ONCE && i + 1 < side->count)
            continue;
        error = pm_look_where(process, pages, asked, status);
        while (asked && !error) {
            uint64_t nth = ((uint64_t)(uintptr_t)pages[--asked] - seen->start) / page;

            if (status[asked] >= 0 || status[asked] == -ENOENT)
                seen->vector[nth] = status[asked] >= 0;
        }
    }
    return error;
}

/* The zero page is noted as there in the destination only, which `unseen` is for too: as a source
 * it has to be looked at again, because it is no evidence of having moved, or not. */
static int look_at(struct pm_process *process, const struct side *side, int list,
                   unsigned char unseen)
{
    uint64_t length = side->seen->end - side->seen->start;
    uint64_t thin = length / process->page_size / side->count;

    if (list && thin >= LISTED && !look_at_listed(process, side, unseen))
        return 0;
    if (thin > PAGES_PER_LOOK)
        return -ENOSYS;
    return pm_look_at_all(process, side->seen->start, length, thin >= SPARSE, unseen,
                          side->seen->vector);
}

/* Look at the next pages at once, and hold their stripes until the window closes. Where that does
 * not pay, or cannot be done, every page is looked at by itself. */
static void window_open(struct pm_process *process, const struct pm_many *many, size_t first,
                        struct window *window)
{
    size_t end = many->count - first < WINDOW ? many->count : first + WINDOW, i;
    size_t moves = end - first, runs = 0;
    struct span to = {.low = INT64_MAX}, of = {.low = INT64_MAX};
    struct pm_seen *dst = &window->known.dst, *src = &window->known.src;
    struct side into = {dst, many->dst, many->dst_pages, first, moves};
    struct side out_of = {src, many->src, many->src_pages, first, moves};
    uint64_t page = process->page_size, stripes = 0, most;
    int64_t last_d = -2, last_s = -2;
    int list;

    window->end = end;
    if (moves < 2 || many->flags & PM_ALLOW_SRC_HOLES)
        return;
    for (i = first; i < end; i++) {
        int64_t d = page_at(many->dst_pages, i), s = page_at(many->src_pages, i);
        if (outside(d, many->dst_limit) || outside(s, many->src_limit))
            return;
        widen(&to, d);
        widen(&of, s);
        stripes |= pm_stripes_of(many->dst + (uint64_t)d * many->unit, many->unit) |
                   pm_stripes_of(many->src + (uint64_t)s * many->unit, many->unit);
        runs += d != last_d + 1 || s != last_s + 1;
        last_d = d;
        last_s = s;
    }
    list = many->unit == page && runs * SHORT_RUN > moves && !process->no_move_pages;
    most = moves * (list ? PAGES_PER_LISTED : PAGES_PER_LOOK);
    if (see(dst, many->dst, &to, many->unit, page, most) ||
        see(src, many->src, &of, many->unit, page, most)) {
        window_close(process, window);
        return;
    }
    pm_stripes_lock(process, stripes, 1);
    window->stripes = stripes;
    window->known.locked = 1;
    if (look_at(process, &into, list, 1) || look_at(process, &out_of, list, 0))
        window_close(process, window);
}

/* Move the rest of a run; many->partial says where in its first page to begin. */
static int move_run(struct pm_process *process, struct pm_many *many, const struct pm_known *known,
                    const struct run *run)
{
    uint64_t length = run->count * many->unit, at = many->partial;
    int64_t moved = 0;

    while (at < length) {
        moved =
            pm_move_with(process, known, run->dst + at, run->src + at, length - at, many->flags, 1);
        if (moved < 0)
            break;
        at += (uint64_t)moved;
        many->moved += (uint64_t)moved;
    }
    many->index += at / many->unit;
    many->partial = at % many->unit;
    return at < length ? (int)moved : 0;
}

/* Whether all that this call would touch was locked, and so may be moved without locking again:
 * an index array that changes under us may lead elsewhere. */
static int usable(const struct window *window, const struct run *run, uint64_t unit)
{
    uint64_t length = run->count * unit;
    uint64_t stripes = pm_stripes_of(run->dst, length) | pm_stripes_of(run->src, length);

    return window->known.locked && !(stripes & ~window->stripes);
}

/* Whether no page from `many->index` on is part of a huge page, where one look can tell. A huge
 * page can come into these places later from among them only, or by khugepaged. */
static int has_no_huge(struct pm_process *process, const struct pm_many *many)
{
    struct span of = {.low = INT64_MAX};
    size_t left = many->count - many->index;
    uint64_t length;

    for (size_t i = many->index; i < many->count; i++) {
        int64_t page = page_at(many->src_pages, i);
        if (outside(page, many->src_limit))
            return 0;
        widen(&of, page);
    }
    length = (uint64_t)(of.high - of.low + 1) * many->unit;
    if (length / many->unit > left * PAGES_PER_LOOK)
        return 0;
    return pm_look_small(process, many->src + (uint64_t)of.low * many->unit, length) ==
           (int64_t)length;
}

int pm_move_many(struct pm_process *process, struct pm_many *many)
{
    struct window window = {.end = many->index};
    int guarded = process->defects & PM_DEFECT_STALE_EAGAIN, error = 0;
    const struct pm_known small = {.no_huge = 1};
    size_t singly_until = 0;
    struct run run;

    if (process->defects & PM_DEFECT_SPLIT_SPIN && many->index < many->count)
        window.known.no_huge = has_no_huge(process, many);
    while (many->index < many->count && !error) {
        size_t most = many->index < singly_until || many->partial ? 1 : many->count - many->index;
        const struct pm_known *known = window.known.no_huge ? &small : NULL;

        error = find_run(many, many->index, most, &run);
        if (error)
            break;
        if (guarded) {
            if (many->index >= window.end) {
                window_close(process, &window);
                if (run.count < LONG_RUN)
                    window_open(process, many, many->index, &window);
            }
            if (usable(&window, &run, many->unit))
                known = &window.known;
            else
                window_close(process, &window);
        }
        error = move_run(process, many, known, &run);
        if (error == -EINVAL && run.count > 1 && !many->partial) {
            /* The run may cross the border of two mappings, which single pages do not. */
            singly_until = many->index + run.count;
            error = 0;
        }
    }
    window_close(process, &window);
    free(window.known.dst.vector);
    free(window.known.src.vector);
    return error;
}

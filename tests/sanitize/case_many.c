/* pm_move_many by one thread, compared with the same moves made one by one on paper. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cases.h"
#include "driver.h"

struct work {
    struct area src, dst;
    struct area *to; /* &dst, or &src where pages move within one area */
    size_t unit;     /* small pages in a page of the index arrays */
    unsigned flags;
    size_t count;
    int64_t *dst_pages, *src_pages;
};

static struct work work_make(size_t src, size_t dst, size_t unit, size_t count)
{
    struct work work = {
        .src = area_make(src * unit, SMALL_PAGES),
        .dst = area_make(dst * unit, SMALL_PAGES),
        .unit = unit,
        .count = count,
        .dst_pages = malloc(count * sizeof *work.dst_pages),
        .src_pages = malloc(count * sizeof *work.src_pages),
    };

    CHECK(work.dst_pages && work.src_pages);
    work.to = NULL;
    return work;
}

static void work_free(struct work *work)
{
    area_free(&work->src);
    area_free(&work->dst);
    free(work->dst_pages);
    free(work->src_pages);
}

static struct area *target(struct work *work)
{
    return work->to ? work->to : &work->dst;
}

/* On paper: the position that stops it, and how many small pages of that moved. */
static size_t expect(struct work *work, size_t *partial)
{
    struct area *dst = target(work), *src = &work->src;

    for (size_t i = 0; i < work->count; i++) {
        size_t to = (size_t)work->dst_pages[i] * work->unit;
        size_t from = (size_t)work->src_pages[i] * work->unit;
        for (size_t part = 0; part < work->unit; part++) {
            uint64_t token = src->tokens[from + part];
            *partial = part;
            if ((dst == src && to == from) || dst->tokens[to + part] ||
                (!token && !(work->flags & PM_ALLOW_SRC_HOLES)))
                return i;
            src->tokens[from + part] = 0;
            dst->tokens[to + part] = token;
        }
    }
    *partial = 0;
    return work->count;
}

static void compare(struct work *work)
{
    uint64_t page = library()->page_size, unit = page * work->unit;
    struct area *dst = target(work);
    struct pm_many many = {
        .dst = area_at(dst, 0),
        .src = area_at(&work->src, 0),
        .unit = unit,
        .dst_limit = (int64_t)(dst->pages / work->unit),
        .src_limit = (int64_t)(work->src.pages / work->unit),
        .dst_pages = work->dst_pages,
        .src_pages = work->src_pages,
        .count = work->count,
        .flags = work->flags,
    };
    size_t partial, index = expect(work, &partial);
    int error = pm_move_many(library(), &many);

    CHECK(many.index == index && many.partial == partial * page, "at %zu + %ju, not %zu + %ju",
          many.index, (uintmax_t)many.partial, index, (uintmax_t)(partial * page));
    CHECK(many.moved == index * unit + partial * page);
    CHECK((index == work->count) == (error == 0), "%s", strerror(-error));
    CHECK(!error || error == -ENOENT || error == -EEXIST || error == -EINVAL);
    area_check(&work->src);
    area_check(&work->dst);
}

static void fill(struct area *area, uint64_t *seed, uint64_t holes_one_in)
{
    for (size_t i = 0; i < area->pages; i++)
        if (random_below(seed, holes_one_in))
            area_fill(area, i, i + 1);
}

static void clear(struct work *work)
{
    area_discard(&work->src, 0, work->src.pages);
    area_discard(&work->dst, 0, work->dst.pages);
}

/* Stretches of consecutive pages up to `longest`, beginning anywhere: repeats, overlaps and all. */
static void index_stretches(struct work *work, uint64_t *seed, size_t longest)
{
    uint64_t to = target(work)->pages / work->unit, from = work->src.pages / work->unit;
    uint64_t d = 0, s = 0, left = 0;

    for (size_t i = 0; i < work->count; i++, left--, d++, s++) {
        if (!left || d >= to || s >= from) {
            left = 1 + random_below(seed, longest);
            d = random_below(seed, to);
            s = random_below(seed, from);
        }
        work->dst_pages[i] = (int64_t)d;
        work->src_pages[i] = (int64_t)s;
    }
}

/* Few pages, so that the same page is source and destination again and again. */
void case_many_small(uint64_t seed)
{
    for (int round = 0; round < 300; round++) {
        struct work work = work_make(6 + random_below(&seed, 12), 6 + random_below(&seed, 12),
                                     1 + random_below(&seed, 3), 1 + random_below(&seed, 24));
        if (random_below(&seed, 2))
            work.to = &work.src;
        work.flags = random_below(&seed, 2) ? PM_ALLOW_SRC_HOLES : 0;
        fill(&work.src, &seed, work.to ? 2 : 20);
        index_stretches(&work, &seed, 6);
        compare(&work);
        work_free(&work);
    }
}

static void shuffle(int64_t *pages, size_t count, uint64_t *seed)
{
    for (size_t i = count; i > 1; i--) {
        size_t j = random_below(seed, i);
        int64_t page = pages[i - 1];
        pages[i - 1] = pages[j];
        pages[j] = page;
    }
}

/* More pages than one window, every one of them moved, in any order and in runs. */
void case_many_dense(uint64_t seed)
{
    enum { PAGES = 2500 };
    struct work work = work_make(PAGES, PAGES, 1, PAGES);

    for (int round = 0; round < 4; round++) {
        size_t stretch = round & 1 ? 16 : 1;
        for (size_t i = 0; i < PAGES; i++) {
            area_fill(&work.src, i, i + 1);
            work.src_pages[i] = work.dst_pages[i] = (int64_t)i;
        }
        if (stretch == 1) {
            shuffle(work.src_pages, PAGES, &seed);
            shuffle(work.dst_pages, PAGES, &seed);
        } else {
            for (size_t i = 0; i + stretch <= PAGES; i += stretch)
                for (size_t k = 0; k < stretch; k++)
                    work.src_pages[i + k] = (int64_t)(PAGES - i - stretch + k);
        }
        if (round & 2)
            area_discard(&work.src, (size_t)work.src_pages[PAGES - 5], 1);
        compare(&work);
        clear(&work);
    }
    work_free(&work);
}

/* Sources so far apart that the pages are listed, or that each is looked at by itself, and windows
 * of all kinds. */
void case_many_sparse(uint64_t seed)
{
    enum { COUNT = 1500 };
    const size_t apart[] = {26, 26, 60, 600};

    for (int round = 0; round < 4; round++) {
        struct work work = work_make(COUNT * apart[round], COUNT, 1, COUNT);
        for (size_t i = 0; i < COUNT; i++) {
            size_t from = i * apart[round] + random_below(&seed, apart[round]);
            if (i >= 1100 && !round)
                from = 30000 + i;
            work.src_pages[i] = (int64_t)from;
            work.dst_pages[i] = (int64_t)(COUNT - 1 - i);
            area_fill(&work.src, from, i + 1);
        }
        compare(&work);
        work_free(&work);
    }
}

/* Runs that cross the border of two mappings, which one call cannot. */
void case_many_borders(uint64_t seed)
{
    enum { PAGES = 20, BORDER = 7 };
    struct work work = work_make(PAGES, PAGES, 1, PAGES);
    uint64_t length = (PAGES - BORDER) * library()->page_size;

    /* What is inherited by a fork is in a mapping of its own. */
    CHECK(!madvise((void *)(uintptr_t)area_at(&work.dst, BORDER), length, MADV_DOFORK));
    for (int holes = 0; holes < 2; holes++) {
        work.flags = holes ? PM_ALLOW_SRC_HOLES : 0;
        fill(&work.src, &seed, holes ? 4 : UINT64_MAX);
        for (size_t i = 0; i < PAGES; i++)
            work.src_pages[i] = work.dst_pages[i] = (int64_t)i;
        compare(&work);
        clear(&work);
    }
    work_free(&work);
}

void case_many_errors(uint64_t seed)
{
    enum { INSIDE = 8, FENCE = 4 };
    struct work work = work_make(INSIDE + FENCE, INSIDE + FENCE, 1, INSIDE);
    struct pm_many many = {
        .dst = area_at(&work.dst, 0),
        .src = area_at(&work.src, 0),
        .unit = library()->page_size,
        .dst_limit = INSIDE,
        .src_limit = INSIDE,
        .dst_pages = work.dst_pages,
        .src_pages = work.src_pages,
        .count = INSIDE,
    };
    const int64_t outside[] = {-1, INSIDE, INT64_MAX, INT64_MIN};

    fill(&work.src, &seed, UINT64_MAX);
    for (size_t k = 0; k < 4 * sizeof outside / sizeof *outside; k++) {
        size_t stop = k & 1 ? 5 : INSIDE - 1;
        int64_t *pages = k & 2 ? work.src_pages : work.dst_pages;
        /* so that a run goes on beyond the limit */
        int64_t first = stop == INSIDE - 1 && outside[k / 4] == INSIDE;
        for (int64_t i = 0; i < INSIDE; i++)
            work.src_pages[i] = work.dst_pages[i] = i;
        for (int64_t i = 0; i < INSIDE; i++)
            pages[i] = first + i;
        pages[stop] = outside[k / 4];
        CHECK(pm_first_outside(pages, INSIDE, INSIDE) == (int64_t)stop);
        CHECK(pm_first_outside(pages, stop, INSIDE) == -1);
        many.index = many.partial = many.moved = 0;
        CHECK(pm_move_many(library(), &many) == -ERANGE && many.index == stop);
        for (size_t i = 0; i < stop; i++) {
            size_t from = (size_t)work.src_pages[i], to = (size_t)work.dst_pages[i];
            CHECK(area_look(&work.dst, to) == from + 1 && !area_look(&work.src, from));
            area_discard(&work.dst, to, 1);
            area_fill(&work.src, from, from + 1);
        }
        area_check(&work.src);
        area_check(&work.dst);
    }
    many.count = 0;
    many.index = many.partial = many.moved = 0;
    CHECK(!pm_move_many(library(), &many) && !many.moved, "no indices at all");
    work_free(&work);
}

/* pm_move by one thread: what it moves, what it answers, what it leaves alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "cases.h"
#include "driver.h"

enum { WAIT = 1, ROUNDS = 100 };

/* Move, and demand the answer. ENOENT and EEXIST of a hole onto an occupied page are told apart by
 * the caller of pm_move, not by pm_move. */
static int64_t move(const struct area *dst, size_t to, const struct area *src, size_t from,
                    size_t pages, unsigned flags)
{
    return pm_move(library(), area_at(dst, to), area_at(src, from), pages * library()->page_size,
                   flags, WAIT);
}

void case_arguments(uint64_t seed)
{
    uint64_t page = library()->page_size;
    struct area src = area_make(4, SMALL_PAGES), dst = area_make(4, SMALL_PAGES);
    uint64_t s = area_at(&src, 0), d = area_at(&dst, 0);
    const uint64_t wrong[][4] = {
        {d + 1, s, page, 0},
        {d, s + 1, page, 0},
        {d, s, page + 1, 0},
        {d, s, 1, 0},
        {d, s, 0, 0},
        {d, s, page, 2},
        {d, s, page, ~0u},
        {s, s, page, 0},
        {s + page, s, 2 * page, 0},
        {d, s, -page, 0},
        {-page, s, page, 0},
        {-page, s, 2 * page, 0},
        {d, -page, 2 * page, 0},
        {d, s, UINT64_C(1) << 63, 0},
        {0, s, page, 0},
    };

    (void)seed;
    area_fill(&src, 0, 1);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const uint64_t *w = wrong[i];
        for (int wait = 0; wait < 2; wait++)
            CHECK(pm_move(library(), w[0], w[1], w[2], (unsigned)w[3], wait) < 0, "row %zu", i);
    }
    area_check(&src);
    area_check(&dst);
    area_free(&src);
    area_free(&dst);
}

void case_mappings(uint64_t seed)
{
    uint64_t page = library()->page_size;
    struct area src = area_make(8, SMALL_PAGES), dst = area_make(8, SMALL_PAGES);

    (void)seed;
    area_fill(&src, 3, 3);
    for (unsigned flags = 0; flags < 2; flags++) {
        uint64_t gap = area_at(&dst, 0) - page;
        /* The gap before an area is mapped without any access; make it a real gap. */
        CHECK(!munmap((void *)(uintptr_t)gap, page));
        CHECK(pm_move(library(), gap, area_at(&src, 3), page, flags, WAIT) < 0);
        CHECK(pm_move(library(), gap, area_at(&src, 0), page, flags, WAIT) < 0);
        CHECK(pm_move(library(), area_at(&dst, 0), gap, page, flags, WAIT) < 0);
        CHECK(pm_move(library(), area_at(&dst, 7), area_at(&src, 3), 2 * page, flags, WAIT) < 0);
        CHECK(mmap((void *)(uintptr_t)gap, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                   -1, 0) != MAP_FAILED);
    }
    CHECK(!mprotect((void *)(uintptr_t)area_at(&dst, 4), page, PROT_READ));
    CHECK(move(&dst, 4, &src, 3, 1, 0) == -EINVAL);
    CHECK(move(&dst, 3, &src, 3, 2, 0) == -EINVAL, "across two mappings");
    CHECK(move(&dst, 3, &src, 3, 2, PM_ALLOW_SRC_HOLES) == -EINVAL, "across two mappings");
    area_check(&src);
    area_check(&dst);
    area_free(&src);
    area_free(&dst);
}

/* What a call page by page would do to the tokens: pages moved, 0 for none. */
static size_t expect(struct area *dst, size_t to, struct area *src, size_t from, size_t pages,
                     unsigned flags)
{
    size_t done;

    for (done = 0; done < pages; done++) {
        uint64_t token = src->tokens[from + done];
        if (dst->tokens[to + done] || (!token && !(flags & PM_ALLOW_SRC_HOLES)))
            break;
        src->tokens[from + done] = 0;
        dst->tokens[to + done] = token;
    }
    return done;
}

static void populate(struct area *area, uint64_t *seed, size_t first, size_t pages, uint64_t one_in,
                     uint64_t token)
{
    for (size_t i = first; i < first + pages; i++)
        if (random_below(seed, one_in))
            area_fill(area, i, token + i);
}

static void compare(struct area *dst, size_t to, struct area *src, size_t from, size_t pages,
                    unsigned flags)
{
    int hole = !src->tokens[from];
    size_t expected = expect(dst, to, src, from, pages, flags);
    int64_t moved = move(dst, to, src, from, pages, flags);

    /* A short count is right wherever it ends; whoever calls goes on from there. */
    if (moved > 0) {
        size_t done = (size_t)moved / library()->page_size;
        CHECK(done <= expected && moved % (int64_t)library()->page_size == 0);
        if (done < expected)
            CHECK(move(dst, to + done, src, from + done, expected - done, flags) ==
                  (int64_t)((expected - done) * library()->page_size));
        if (expected < pages)
            moved = move(dst, to + expected, src, from + expected, pages - expected, flags);
    } else {
        CHECK(!expected, "nothing moved: %s", strerror((int)-moved));
    }
    if (expected < pages)
        CHECK(moved == -ENOENT || moved == -EEXIST);
    if (!expected && !hole)
        CHECK(moved == -EEXIST);
    area_check(src);
    area_check(dst);
}

void case_runs(uint64_t seed)
{
    struct area src = area_make(24, SMALL_PAGES), dst = area_make(24, SMALL_PAGES);

    for (int round = 0; round < ROUNDS; round++) {
        size_t pages = 1 + random_below(&seed, 16);
        size_t from = random_below(&seed, 8), to = random_below(&seed, 8);
        populate(&src, &seed, 0, src.pages, 12, 1000);
        if (random_below(&seed, 2))
            area_fill(&dst, random_below(&seed, dst.pages), 1);
        compare(&dst, to, &src, from, pages, random_below(&seed, 2) ? PM_ALLOW_SRC_HOLES : 0);
        area_discard(&src, 0, src.pages);
        area_discard(&dst, 0, dst.pages);
    }
    area_free(&src);
    area_free(&dst);
}

void case_overlaps(uint64_t seed)
{
    struct area area = area_make(64, SMALL_PAGES);

    for (int round = 0; round < ROUNDS; round++) {
        size_t distance = 1 + random_below(&seed, 8), pages = distance + random_below(&seed, 40);
        size_t to = random_below(&seed, 8);
        populate(&area, &seed, to + distance, pages, 40, 5);
        /* tokens move as pages do: one after another, the lowest first */
        compare(&area, to, &area, to + distance, pages,
                random_below(&seed, 2) ? PM_ALLOW_SRC_HOLES : 0);
        area_discard(&area, 0, area.pages);
    }
    CHECK(move(&area, 9, &area, 8, 2, 0) == -EINVAL, "forward");
    area_free(&area);
}

/* Longer than what is looked at in one go, with a hole behind that border. */
void case_long_range(uint64_t seed)
{
    enum { PAGES = 4096 + 700, HOLE = 4096 + 300 };
    struct area src = area_make(PAGES, SMALL_PAGES), dst = area_make(PAGES, SMALL_PAGES);

    (void)seed;
    for (unsigned flags = 0; flags < 2; flags++) {
        for (size_t i = 0; i < PAGES; i++)
            if (i != HOLE)
                area_fill(&src, i, i + 1);
        compare(&dst, 0, &src, 0, PAGES, flags);
        CHECK(!dst.tokens[HOLE] && (flags ? 1 : !dst.tokens[HOLE + 1]));
        area_discard(&src, 0, PAGES);
        area_discard(&dst, 0, PAGES);
    }
    area_free(&src);
    area_free(&dst);
}

void case_huge_pages(uint64_t seed)
{
    uint64_t page = library()->page_size, huge = library()->huge_page_size;
    size_t each = huge / page;
    struct area src, dst;

    if (!huge)
        return;
    src = area_make(4 * each, HUGE_PAGES);
    dst = area_make(4 * each, HUGE_PAGES);
    for (int round = 0; round < 4; round++) {
        size_t from = round & 1 ? random_below(&seed, each) : 0;
        size_t to = round & 2 ? random_below(&seed, each) : 0;
        for (size_t i = 0; i < src.pages; i++)
            area_fill(&src, i, i + 1);
        compare(&dst, to, &src, from, 3 * each, round & 1 ? PM_ALLOW_SRC_HOLES : 0);
        area_discard(&src, 0, src.pages);
        area_discard(&dst, 0, dst.pages);
    }
    area_free(&src);
    area_free(&dst);
}

void case_stripes(uint64_t seed)
{
    struct pm_process *process = library();
    const uint64_t block = UINT64_C(1) << PM_STRIPE_SHIFT;

    (void)seed;
    CHECK(pm_stripes_of(0, 1) == 1 && pm_stripes_of(block - 1, 2) == 3);
    CHECK(pm_stripes_of(63 * block, 2 * block) == ((UINT64_C(1) << 63) | 1), "round the corner");
    CHECK(pm_stripes_of(5, PM_STRIPES * block) == ~UINT64_C(0));
    CHECK(pm_stripes_of(-block, block) == UINT64_C(1) << 63, "the top of the address space");
    CHECK(!pm_stripes_lock(process, 0x16, 1));
    CHECK(pm_stripes_lock(process, 0x09 | 0x02, 0) == -EBUSY);
    CHECK(!pm_stripes_lock(process, 0x09, 0), "what was tried before was let go");
    pm_stripes_unlock(process, 0x16 | 0x09);
}

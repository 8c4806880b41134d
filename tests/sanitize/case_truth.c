/* The stale EAGAIN, provoked by a sibling in MADV_COLD, and every answer compared with the truth:
 * the contents of the pages, which the defect leaves intact. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>

#include "cases.h"
#include "driver.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#endif

enum { MOST = 128 };

struct form {
    const char *name;
    size_t pages;    /* that one call moves */
    size_t distance; /* of a backward overlap, or 0 for two areas side by side, to and fro */
    size_t stretch;  /* consecutive indices of pm_move_many, or 0 for pm_move */
    size_t apart;    /* pages from one source to the next */
    unsigned flags;
};

static const struct form forms[] = {
    {"one page", 1, 0, 0, 1, 0},
    {"one page, holes allowed", 1, 0, 0, 1, PM_ALLOW_SRC_HOLES},
    {"run", 16, 0, 0, 1, 0},
    {"run, holes allowed", 16, 0, 0, 1, PM_ALLOW_SRC_HOLES},
    {"overlap by one page", 3, 1, 0, 1, 0},
    {"overlap by eight pages", 16, 8, 0, 1, 0},
    {"many, scattered", 8, 0, 1, 1, 0},
    {"many, far apart", 2, 0, 1, 40, 0},
    {"many, runs", 16, 0, 4, 1, 0},
};

static size_t half(const struct form *form)
{
    return form->pages * form->apart;
}

struct answer {
    size_t moved; /* pages */
    int error;
};

/* Page of the i-th move, counted from the first page of its half. */
static size_t place(const struct form *form, size_t i)
{
    size_t top = (form->pages - 1) * form->apart;

    if (!form->stretch)
        return i;
    /* stretches from the top down, each upwards */
    return top - (i / form->stretch + 1) * form->stretch * form->apart + form->apart +
           i % form->stretch * form->apart;
}

static struct answer ask(const struct form *form, const struct area *area, size_t to, size_t from)
{
    uint64_t page = library()->page_size;
    int64_t pages[MOST], moved;
    struct pm_many many = {
        .dst = area_at(area, to),
        .src = area_at(area, from),
        .unit = page,
        .dst_limit = (int64_t)half(form),
        .src_limit = (int64_t)half(form),
        .dst_pages = pages,
        .src_pages = pages,
        .count = form->pages,
        .flags = form->flags,
    };

    if (!form->stretch) {
        moved = pm_move(library(), many.dst, many.src, form->pages * page, form->flags, 1);
        if (moved < 0)
            return (struct answer){0, (int)-moved};
        return (struct answer){(size_t)moved / page, 0};
    }
    for (size_t i = 0; i < form->pages; i++)
        pages[i] = (int64_t)place(form, i);
    moved = pm_move_many(library(), &many);
    return (struct answer){many.index, (int)-moved};
}

/* Whether the answer agrees with what is in the pages. Looks without touching a hole. */
static int is_true(const struct form *form, const struct area *area, size_t to, size_t from,
                   struct answer answer)
{
    uint64_t page = library()->page_size;
    unsigned char there[2 * MOST];
    uint64_t said[2 * MOST] = {0};

    CHECK(!mincore(area->start, area->pages * page, there));
    for (size_t i = 0; i < form->pages; i++)
        said[from + place(form, i)] = i + 1;
    for (size_t i = 0; i < answer.moved; i++) {
        said[to + place(form, i)] = i + 1;
        said[from + place(form, i)] = 0;
    }
    for (size_t i = 0; i < area->pages; i++) {
        const uint64_t *word = (const uint64_t *)(uintptr_t)area_at(area, i);
        if ((there[i] & 1) != (said[i] != 0) || (said[i] && *word != said[i]))
            return 0;
    }
    return 1;
}

static void begin(const struct form *form, struct area *area, size_t from)
{
    area_discard(area, 0, area->pages);
    for (size_t i = 0; i < form->pages; i++)
        *(uint64_t *)(uintptr_t)area_at(area, from + place(form, i)) = i + 1;
}

/* What is raced must really run at the same time: where there are two CPUs, the sibling gets the
 * last one and the mover the others. */
static void keep_apart(const cpu_set_t *all, int sibling)
{
    int last = CPU_SETSIZE - 1;
    cpu_set_t mine = *all;

    if (CPU_COUNT(all) < 2)
        return;
    while (!CPU_ISSET(last, all))
        last--;
    if (sibling)
        CPU_ZERO(&mine);
    CPU_CLR(last, &mine);
    if (sibling)
        CPU_SET(last, &mine);
    sched_setaffinity(0, sizeof mine, &mine);
}

struct cold {
    const cpu_set_t *cpus;
    const struct area *area;
    int placed;
    uint64_t seed;
    atomic_ulong pause;
};

static void cold_step(void *argument)
{
    struct cold *cold = argument;

    if (!cold->placed) {
        keep_apart(cold->cpus, 1);
        cold->placed = 1;
    }
    CHECK(!madvise(cold->area->start, cold->area->pages * library()->page_size, MADV_COLD));
    for (volatile uint64_t left = random_below(&cold->seed, atomic_load(&cold->pause)); left;
         left--)
        ;
}

/* After a move onto itself: move all up again, from the top, in parts that do not overlap. New
 * pages would not do: MADV_COLD passes over those that are not on the kernel's lists yet. */
static int move_back(const struct form *form, const struct area *area)
{
    uint64_t page = library()->page_size;
    size_t left = form->distance ? form->pages : 0;

    while (left) {
        size_t part = left < form->distance ? left : form->distance;
        left -= part;
        if (pm_move(library(), area_at(area, form->distance + left), area_at(area, left),
                    part * page, 0, 1) != (int64_t)(part * page))
            return -1;
    }
    /* Touched lately, or there is nothing for MADV_COLD to change. */
    for (size_t i = 0; form->distance && i < form->pages; i++)
        (void)*(volatile uint64_t *)(uintptr_t)area_at(area, form->distance + i);
    return 0;
}

/* Pages of one form, which move to and fro. */
struct bounce {
    const struct form *form;
    struct area area;
    size_t to, from;
};

static long lies(struct bounce *bounce, int guard)
{
    const struct form *form = bounce->form;
    struct area *area = &bounce->area;
    long wrong = 0;

    set_guard(guard);
    for (int i = 0; i < 100; i++) {
        size_t from = bounce->from;
        struct answer answer = ask(form, area, bounce->to, from);
        int lie = !is_true(form, area, bounce->to, from, answer);
        wrong += lie;
        if (lie || answer.moved < form->pages || move_back(form, area)) {
            begin(form, area, from);
        } else if (!form->distance) {
            bounce->from = bounce->to;
            bounce->to = from;
        }
    }
    return wrong;
}

/* Wrong answers without the guard, until they are enough to put it to the test; with it, none. */
static long compare(const struct form *form, const cpu_set_t *cpus)
{
    /* It provokes most if it comes about once a call. How long one takes differs, so try them all,
     * and stay where it bites. */
    static const unsigned long paces[] = {300, 3000, 10000, 30000, 100000, 300000};
    size_t at = form->distance ? form->distance : half(form), pace = 0;
    struct bounce bounce = {
        .form = form,
        .area =
            area_make(form->distance ? form->pages + form->distance : 2 * half(form), SMALL_PAGES),
        .from = at,
    };
    struct cold cold = {.cpus = cpus, .area = &bounce.area, .seed = 1, .pause = paces[0]};
    struct sibling sibling;
    double end = seconds() + 0.25;
    long provoked = 0;

    begin(form, &bounce.area, at);
    sibling_start(&sibling, cold_step, &cold);
    while (provoked < 20 && seconds() < end) {
        long now = lies(&bounce, 0);
        CHECK(!lies(&bounce, 1), "%s: a wrong answer in spite of the guard", form->name);
        if (!now)
            atomic_store(&cold.pause, paces[++pace % (sizeof paces / sizeof *paces)]);
        provoked += now;
    }
    sibling_stop(&sibling);
    area_free(&bounce.area);
    return provoked;
}

void case_truth(uint64_t seed)
{
    long provoked = 0;
    cpu_set_t cpus;

    (void)seed;
    CHECK(!sched_getaffinity(0, sizeof cpus, &cpus));
    keep_apart(&cpus, 0);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        provoked += compare(&forms[i], &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    printf("wrong answers without the guard: %ld%s\n", provoked,
           provoked ? "" : " (the defect was not provoked)");
}

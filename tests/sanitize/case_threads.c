/* Several threads at once, in the same pages where that is the point. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"
#include "driver.h"

enum { THREADS = 4 };

struct team {
    pthread_t threads[THREADS];
    pthread_barrier_t barrier;
    struct member {
        struct team *team;
        uint64_t seed;
        size_t number;
        void (*run)(struct member *member);
        int64_t answer;
    } members[THREADS];
    struct area src, dst;
};

static void *member_run(void *argument)
{
    struct member *member = argument;

    pthread_barrier_wait(&member->team->barrier);
    member->run(member);
    return NULL;
}

/* Run it in all threads, from one moment on, to the end. */
static void team_run(struct team *team, void (*run)(struct member *), uint64_t seed)
{
    CHECK(!pthread_barrier_init(&team->barrier, NULL, THREADS));
    for (size_t i = 0; i < THREADS; i++) {
        team->members[i] =
            (struct member){.team = team, .seed = seed + i * 7919, .number = i, .run = run};
        CHECK(!pthread_create(&team->threads[i], NULL, member_run, &team->members[i]));
    }
    for (size_t i = 0; i < THREADS; i++)
        CHECK(!pthread_join(team->threads[i], NULL));
    pthread_barrier_destroy(&team->barrier);
}

enum { OWN = 24, BOUNCES = 800 };

/* Pages of its own, mixed with those of the other threads, to and fro between two areas. */
static void bounce(struct member *member)
{
    struct area *area[2] = {&member->team->src, &member->team->dst};
    int64_t pages[OWN];
    int side = 0;

    for (size_t i = 0; i < OWN; i++)
        pages[i] = (int64_t)(i * THREADS + member->number);
    for (int round = 0; round < BOUNCES; round++, side ^= 1) {
        struct area *src = area[side], *dst = area[!side];
        struct pm_many many = {
            .dst = area_at(dst, 0),
            .src = area_at(src, 0),
            .unit = library()->page_size,
            .dst_limit = (int64_t)dst->pages,
            .src_limit = (int64_t)src->pages,
            .dst_pages = pages,
            .src_pages = pages,
            .count = OWN,
        };
        size_t first = random_below(&member->seed, OWN);
        for (size_t i = 0; i < first; i++)
            CHECK(pm_move(library(), area_at(dst, (size_t)pages[i]), area_at(src, (size_t)pages[i]),
                          many.unit, 0, 1) == (int64_t)many.unit);
        many.index = first;
        CHECK(!pm_move_many(library(), &many) && many.moved == (OWN - first) * many.unit);
        CHECK(area_look(dst, (size_t)pages[first]) == (uint64_t)pages[first] + 1);
    }
}

void case_bounce(uint64_t seed)
{
    struct team team = {
        .src = area_make(OWN * THREADS, SMALL_PAGES),
        .dst = area_make(OWN * THREADS, SMALL_PAGES),
    };

    for (size_t i = 0; i < team.src.pages; i++)
        area_fill(&team.src, i, i + 1);
    team_run(&team, bounce, seed);
    /* an even number of times, so that all is where it was */
    area_check(&team.src);
    area_check(&team.dst);
    area_free(&team.src);
    area_free(&team.dst);
}

/* Move by one call or the other. */
static int64_t move_somehow(const struct member *member, size_t to, size_t from)
{
    const int64_t dst_pages[2] = {(int64_t)to, THREADS}, src_pages[2] = {(int64_t)from, THREADS};
    struct pm_many many = {
        .dst = area_at(&member->team->dst, 0),
        .src = area_at(&member->team->src, 0),
        .unit = library()->page_size,
        .dst_limit = THREADS + 1,
        .src_limit = THREADS + 1,
        .dst_pages = dst_pages,
        .src_pages = src_pages,
        .count = 2, /* of which the second is always a hole: for a look at several at once */
    };

    if (member->number & 1) {
        int error = pm_move_many(library(), &many);
        return many.index ? (int64_t)many.moved : error;
    }
    return pm_move(library(), area_at(&member->team->dst, to), area_at(&member->team->src, from),
                   many.unit, 0, 1);
}

/* All threads move page 0, each to a place of its own. */
static void grab(struct member *member)
{
    member->answer = move_somehow(member, member->number, 0);
}

/* All threads move a page of their own to page 0. */
static void crowd(struct member *member)
{
    member->answer = move_somehow(member, 0, member->number);
}

/* All threads move the same page to the same place. */
static void agree(struct member *member)
{
    member->answer = move_somehow(member, 0, 0);
}

static size_t the_winner(const struct team *team, int64_t losers, int64_t or_else)
{
    size_t winner = THREADS;

    for (size_t i = 0; i < THREADS; i++) {
        int64_t answer = team->members[i].answer;
        if (answer > 0) {
            CHECK(winner == THREADS, "threads %zu and %zu both say they moved it", winner, i);
            winner = i;
        } else {
            CHECK(answer == losers || answer == or_else, "thread %zu: %s", i,
                  strerror((int)-answer));
        }
    }
    CHECK(winner < THREADS, "nobody says they moved it");
    return winner;
}

void case_one_winner(uint64_t seed)
{
    struct team team = {
        .src = area_make(THREADS + 1, SMALL_PAGES),
        .dst = area_make(THREADS + 1, SMALL_PAGES),
    };

    for (uint64_t round = 1; round <= 80; round++) {
        for (int race = 0; race < 3; race++) {
            size_t winner;
            for (size_t i = 0; i < THREADS; i++)
                area_fill(&team.src, i, 100 * round + i);
            team_run(&team, race == 0 ? grab : race == 1 ? crowd : agree, seed);
            winner = the_winner(&team, race == 1 ? -EEXIST : -ENOENT, race ? -EEXIST : -ENOENT);
            team.src.tokens[race == 1 ? winner : 0] = 0;
            team.dst.tokens[race == 0 ? winner : 0] = 100 * round + (race == 1 ? winner : 0);
            area_check(&team.src);
            area_check(&team.dst);
            area_discard(&team.src, 0, THREADS);
            area_discard(&team.dst, 0, THREADS);
        }
    }
    area_free(&team.src);
    area_free(&team.dst);
}

/* Fences on both sides of each buffer: pages that no index can mean. */
enum { FENCE = 8, INSIDE = 1200, COUNT = 3000 };

struct scribble {
    int64_t *pages;
    uint64_t seed;
};

static void scribble_step(void *argument)
{
    struct scribble *scribble = argument;
    size_t i = random_below(&scribble->seed, COUNT);
    int64_t page = (int64_t)random_below(&scribble->seed, INSIDE);

    if (!random_below(&scribble->seed, 2000))
        page = random_below(&scribble->seed, 2) ? -1 - page : INSIDE + page;
    __atomic_store_n(&scribble->pages[i], page, __ATOMIC_RELAXED);
}

/* No page outside the buffers moves, none is lost, none is counted that did not move. */
static void many_while_scribbled(struct area *src, struct area *dst, uint64_t *seed,
                                 int64_t *dst_pages, int64_t *src_pages)
{
    struct pm_many many = {
        .dst = area_at(dst, FENCE),
        .src = area_at(src, FENCE),
        .unit = library()->page_size,
        .dst_limit = INSIDE,
        .src_limit = INSIDE,
        .dst_pages = dst_pages,
        .src_pages = src_pages,
        .count = COUNT,
        .flags = random_below(seed, 2) ? PM_ALLOW_SRC_HOLES : 0,
    };
    size_t seen = 0, away = 0;
    char *found = calloc(src->pages, 1);

    CHECK(found);
    while (many.index < many.count) {
        int error = pm_move_many(library(), &many);
        CHECK(!error || error == -ENOENT || error == -EEXIST || error == -ERANGE);
        CHECK(many.index <= many.count && !many.partial);
        many.index++;
    }
    for (size_t i = 0; i < src->pages; i++) {
        uint64_t at_src = area_look(src, i), at_dst = area_look(dst, i);
        int fence = i < FENCE || i >= FENCE + INSIDE;
        CHECK(!fence || (at_src == i + 1 && !at_dst), "page %zu of the fence", i);
        away += at_dst != 0;
        for (int side = 0; side < 2; side++) {
            uint64_t token = side ? at_dst : at_src;
            CHECK(token <= src->pages && (!token || !found[token - 1]++), "twice");
            seen += token != 0;
        }
    }
    CHECK(seen == src->pages, "%zu of %zu pages left", seen, src->pages);
    CHECK(many.flags || many.moved == away * many.unit);
    free(found);
}

void case_changing_indices(uint64_t seed)
{
    enum { PAGES = INSIDE + 2 * FENCE };
    struct area src = area_make(PAGES, SMALL_PAGES), dst = area_make(PAGES, SMALL_PAGES);
    struct scribble scribbles[2];
    struct sibling siblings[2];

    for (int side = 0; side < 2; side++) {
        scribbles[side] = (struct scribble){malloc(COUNT * sizeof(int64_t)), seed + (uint64_t)side};
        CHECK(scribbles[side].pages);
        for (size_t i = 0; i < COUNT; i++)
            scribbles[side].pages[i] = (int64_t)(i % INSIDE);
        sibling_start(&siblings[side], scribble_step, &scribbles[side]);
    }
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < PAGES; i++)
            area_fill(&src, i, i + 1);
        many_while_scribbled(&src, &dst, &seed, scribbles[1].pages, scribbles[0].pages);
        area_discard(&src, 0, PAGES);
        area_discard(&dst, 0, PAGES);
    }
    for (int side = 0; side < 2; side++) {
        CHECK(sibling_stop(&siblings[side]) > 0);
        free(scribbles[side].pages);
    }
    area_free(&src);
    area_free(&dst);
}

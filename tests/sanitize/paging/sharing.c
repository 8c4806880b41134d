/* Regions of different blocks under one budget: threads store and read in two of them, others
 * gather, pin, evict and resize, and one region is closed meanwhile. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "pager/mechanisms/budget.h"
#include "pager/pager.h"
#include "paging.h"

enum { REGIONS = 3, LAST = REGIONS - 1, WRITERS = 2, TURNS = 250, NBYTES = 2 << 20 };
enum { TOTAL = 24 << 16, LEAST = 16 << 16, MOST_RUNS = 4 };

static const uint64_t blocks[REGIONS] = {4096, 65536, 16384};

struct shared {
    struct pg_budget *budget;
    struct pg_region *regions[REGIONS]; /* the last is only read, and closed before the others */
    int files[REGIONS];
    uint64_t *counts[REGIONS]; /* what each word must be: writer w has words w modulo WRITERS */
    uint64_t seed;
    atomic_uint writers, askers; /* that have begun */
    atomic_int stop;
};

/* The words of a region belong to threads of the pager as well, through the kernel. */
static _Atomic uint64_t *word_at(const struct shared *shared, int which, uint64_t word)
{
    return (_Atomic uint64_t *)(uintptr_t)(pg_address(shared->regions[which]) + 8 * word);
}

static void *count_up(void *argument)
{
    struct shared *shared = argument;
    unsigned number = atomic_fetch_add(&shared->writers, 1);
    uint64_t seed = shared->seed + number, words = NBYTES / 8 / WRITERS;

    for (int turn = 0; turn < TURNS; turn++) {
        int which = (int)(next(&seed) % LAST);
        uint64_t first = next(&seed) % words;
        for (uint64_t i = first; i < first + 20; i++) {
            uint64_t word = i * 521 % words * WRITERS + number;
            CHECK(atomic_load(word_at(shared, which, word)) == shared->counts[which][word]);
            atomic_store(word_at(shared, which, word), ++shared->counts[which][word]);
        }
    }
    return NULL;
}

static void *read_last(void *argument)
{
    struct shared *shared = argument;
    uint64_t seed = shared->seed + 5;

    for (int turn = 0; turn < TURNS; turn++)
        CHECK(atomic_load(word_at(shared, LAST, next(&seed) % (NBYTES / 8))) == 0);
    return NULL;
}

/* Some of the blocks of a region, ascending. */
static size_t choose(int which, uint64_t *seed, struct pg_run runs[MOST_RUNS])
{
    uint32_t all = (uint32_t)(NBYTES / blocks[which]), part = all / MOST_RUNS;

    for (uint32_t i = 0; i < MOST_RUNS; i++)
        runs[i] = (struct pg_run){i * part + (uint32_t)(next(seed) % (part - 2)),
                                  1 + (uint32_t)(next(seed) % 2)};
    return 1 + next(seed) % MOST_RUNS;
}

static void *ask(void *argument)
{
    struct shared *shared = argument;
    uint64_t seed = shared->seed + 11 + atomic_fetch_add(&shared->askers, 1);

    while (!atomic_load(&shared->stop)) {
        int which = (int)(next(&seed) % LAST), error;
        struct pg_region *region = shared->regions[which];
        uint64_t offset = next(&seed) % NBYTES;
        struct pg_run runs[MOST_RUNS];
        size_t count = choose(which, &seed, runs);
        switch (next(&seed) % 5) {
        case 0:
            CHECK(pg_gather(region, runs, count, 1) == 0);
            break;
        case 1:
            error = pg_pin(region, runs, count, (int)(next(&seed) & 1));
            CHECK(error == 0 || error == -PG_NO_ROOM);
            if (!error)
                pg_unpin(region, runs, count);
            break;
        case 2:
            CHECK(pg_evict(region, offset, NBYTES - offset) == 0);
            break;
        case 3:
            CHECK(pg_prefetch(region, offset, NBYTES - offset, (int)(next(&seed) & 1)) == 0);
            break;
        default:
            CHECK(pg_flush(region) == 0);
        }
    }
    return NULL;
}

static int go_on(void)
{
    return 0;
}

static void *watch(void *argument)
{
    struct shared *shared = argument;
    struct pg_budget_counters counters;
    struct pg_holding holdings[REGIONS];

    for (unsigned turn = 0; !atomic_load(&shared->stop); turn++) {
        uint64_t resident = 0;
        pg_budget_shares(shared->budget, &counters, holdings, REGIONS);
        CHECK(counters.members <= REGIONS);
        for (uint32_t i = 0; i < counters.members; i++) {
            CHECK(holdings[i].resident <= holdings[i].leased);
            resident += holdings[i].resident;
        }
        CHECK(resident <= counters.leased);
        /* A smaller total may not be reached in time. */
        CHECK(counters.leased <= TOTAL);
        if (turn % 64 == 63) {
            int error = pg_budget_resize(shared->budget, turn & 64 ? TOTAL : LEAST,
                                         UINT64_C(100000000), go_on);
            CHECK(error == 0 || error == -ETIMEDOUT || error == -PG_NO_ROOM);
        }
    }
    return NULL;
}

static void open_all(struct shared *shared, int moves)
{
    for (int i = 0; i < REGIONS; i++) {
        char path[] = "/tmp/pagemove-sanitize-XXXXXX", text[PG_TEXT];
        struct pg_config config = {.fd = shared->files[i] = mkstemp(path),
                                   .nbytes = NBYTES,
                                   .label = path,
                                   .mode = i == LAST ? PG_READ : PG_WRITE,
                                   .block_size = blocks[i],
                                   .limit = TOTAL,
                                   .budget = shared->budget,
                                   .timeout_ns = UINT64_C(60000000000),
                                   .read_ahead = 1,
                                   .rings = 1,
                                   .moves = moves,
                                   .spill_directory = "/tmp"};
        CHECK(shared->files[i] >= 0 && !unlink(path));
        CHECK(!ftruncate(shared->files[i], NBYTES));
        shared->counts[i] = calloc(NBYTES / 8, sizeof *shared->counts[i]);
        CHECK(shared->counts[i]);
        CHECK(pg_open(&config, &shared->regions[i], text) == 0);
    }
}

static void check(const struct shared *shared, int which)
{
    for (uint64_t word = 0; word < NBYTES / 8; word++)
        CHECK(atomic_load(word_at(shared, which, word)) == shared->counts[which][word]);
    CHECK(pg_flush(shared->regions[which]) == 0);
    for (uint64_t word = 0; word < NBYTES / 8; word++) {
        uint64_t stored;
        CHECK(pread(shared->files[which], &stored, 8, (off_t)(8 * word)) == 8);
        CHECK(stored == shared->counts[which][word]);
    }
}

void share(uint64_t seed, int moves)
{
    struct shared shared = {.budget = pg_budget_new(TOTAL), .seed = seed};
    pthread_t writers[WRITERS], reader, others[3];
    struct pg_budget_counters counters;

    CHECK(shared.budget);
    open_all(&shared, moves);
    for (int i = 0; i < WRITERS; i++)
        CHECK(!pthread_create(&writers[i], NULL, count_up, &shared));
    CHECK(!pthread_create(&reader, NULL, read_last, &shared));
    for (int i = 0; i < 3; i++)
        CHECK(!pthread_create(&others[i], NULL, i ? ask : watch, &shared));
    pthread_join(reader, NULL);
    CHECK(pg_close(shared.regions[LAST]) == 0);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    atomic_store(&shared.stop, 1);
    for (int i = 0; i < 3; i++)
        pthread_join(others[i], NULL);
    for (int i = 0; i < LAST; i++) {
        check(&shared, i);
        CHECK(pg_close(shared.regions[i]) == 0);
    }
    pg_budget_counters(shared.budget, &counters);
    CHECK(counters.members == 0 && counters.leased == 0);
    pg_budget_release(shared.budget);
    for (int i = 0; i < REGIONS; i++) {
        free(shared.counts[i]);
        close(shared.files[i]);
    }
}

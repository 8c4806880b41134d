/* The pager under the compiler's sanitizers: threads store, read, flush, evict and prefetch at
 * once, over a file with a limit and a store that fails now and then; in the end nothing is lost.
 *
 * The first argument is a seed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "handing.h"
#include "pager/pager.h"
#include "paging.h"

enum { WRITERS = 2, BLOCKS = 48, TURNS = 400 };

struct paged {
    struct pg_region *region;
    uint64_t block_size, words; /* 64-bit words of all */
    int file, mode;
    uint64_t *counts; /* what each word must be: words of writer w are w modulo WRITERS */
    uint64_t seed;
    atomic_int stop;
};

struct writer {
    struct paged *paged;
    unsigned number;
};

/* The words of the region belong to threads of the pager as well, through the kernel. */
static _Atomic uint64_t *word_at(const struct paged *paged, uint64_t word)
{
    return (_Atomic uint64_t *)(uintptr_t)(pg_address(paged->region) + 8 * word);
}

static void *count_up(void *argument)
{
    struct writer *writer = argument;
    struct paged *paged = writer->paged;
    uint64_t seed = paged->seed + writer->number;

    for (int turn = 0; turn < TURNS; turn++) {
        uint64_t first = next(&seed) % (paged->words / WRITERS), run = 1 + next(&seed) % 40;
        for (uint64_t i = first; i < first + run && i < paged->words / WRITERS; i++) {
            uint64_t word = i * 61 % (paged->words / WRITERS) * WRITERS + writer->number;
            CHECK(atomic_load(word_at(paged, word)) == paged->counts[word]);
            if (paged->mode != PG_READ)
                atomic_store(word_at(paged, word), ++paged->counts[word]);
        }
    }
    return NULL;
}

static void *disturb(void *argument)
{
    struct paged *paged = argument;
    uint64_t seed = paged->seed + 77, length = paged->words * 8;

    while (!atomic_load(&paged->stop)) {
        uint64_t offset = next(&seed) % length, count = next(&seed) % (length - offset) + 1;
        struct pg_counters counters;
        switch (next(&seed) % 4) {
        case 0:
            CHECK(pg_flush(paged->region) == 0);
            break;
        case 1:
            CHECK(pg_evict(paged->region, offset, count) == 0);
            break;
        case 2:
            CHECK(pg_prefetch(paged->region, offset, count, (int)(next(&seed) & 1)) == 0);
            break;
        default:
            pg_counters(paged->region, &counters);
            CHECK(counters.errors == 0);
        }
    }
    return NULL;
}

static void check_contents(const struct paged *paged)
{
    for (uint64_t word = 0; word < paged->words; word++)
        CHECK(atomic_load(word_at(paged, word)) == paged->counts[word]);
}

static void check_file(const struct paged *paged)
{
    for (uint64_t word = 0; word < paged->words; word++) {
        uint64_t stored;
        CHECK(pread(paged->file, &stored, 8, (off_t)(8 * word)) == 8);
        CHECK(stored == (paged->mode == PG_WRITE ? paged->counts[word] : 0));
    }
}

/* What is kept of a region without a file is compressed, and noise stays where it is. */
enum { MOVING = 1, COMPRESSED = 2, NOISE = 4 };

static void fill_with_noise(const struct paged *paged)
{
    uint64_t seed = paged->seed;

    for (uint64_t word = 0; word < paged->words; word++)
        atomic_store(word_at(paged, word), paged->counts[word] = next(&seed) << 32 | next(&seed));
}

static void run(uint64_t seed, int mode, uint64_t block_size, uint64_t frames, int how)
{
    const struct pg_compression compression = {.limit = 0, .spill = seed % 3 ? NULL : "/tmp"};
    /* Every so often the store fails; it is tried again. */
    const struct pg_injection failing[] = {
        {PG_OP_READ, PG_INJECT_ERRNO, 5, 1, EIO},
        {PG_OP_READ, PG_INJECT_SHORT, 31, 2, 1},
        {PG_OP_WRITE, PG_INJECT_ERRNO, 3, 2, ENOSPC},
        /* Long enough for others to come by while a block is written. */
        {PG_OP_WRITE, PG_INJECT_DELAY, 20, 60, 1000000},
    };
    char path[] = "/tmp/pagemove-sanitize-XXXXXX", text[PG_TEXT];
    struct paged paged = {.block_size = block_size,
                          .words = BLOCKS * block_size / 8 - 3,
                          .file = mkstemp(path),
                          .mode = mode,
                          .seed = seed};
    struct pg_config config = {.fd = paged.file,
                               .nbytes = 8 * paged.words,
                               .label = path,
                               .mode = mode,
                               .block_size = block_size,
                               .limit = frames * block_size,
                               .timeout_ns = UINT64_C(60000000000),
                               .read_ahead = 1,
                               .moves = how & MOVING,
                               .compression = how & COMPRESSED ? &compression : NULL,
                               .spill_directory = "/tmp",
                               .injections = failing,
                               .injection_count = seed % 2 ? 4 : 0};
    pthread_t threads[WRITERS], other;
    struct writer writers[WRITERS];

    CHECK(paged.file >= 0 && !unlink(path));
    CHECK(!ftruncate(paged.file, (off_t)config.nbytes));
    paged.counts = calloc(paged.words, sizeof *paged.counts);
    CHECK(paged.counts);
    CHECK(pg_open(&config, &paged.region, text) == 0);
    if (how & NOISE)
        fill_with_noise(&paged);
    CHECK(!pthread_create(&other, NULL, disturb, &paged));
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){&paged, i};
        CHECK(!pthread_create(&threads[i], NULL, count_up, &writers[i]));
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&paged.stop, 1);
    pthread_join(other, NULL);
    check_contents(&paged);
    CHECK(pg_flush(paged.region) == 0);
    if (!(how & COMPRESSED))
        check_file(&paged);
    pg_close(paged.region);
    free(paged.counts);
    close(paged.file);
}

int main(int argc, char **argv)
{
    static const uint64_t block_sizes[] = {4096, 16384, 65536}, limits[] = {0, 4, 6, 40};
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;

    for (size_t b = 0; b < sizeof block_sizes / sizeof *block_sizes; b++)
        for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
            for (int mode = PG_READ; mode <= PG_PRIVATE; mode++)
                run(seed++, mode, block_sizes[b], limits[l], MOVING);
    /* As on a kernel that cannot move pages. */
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
        for (int mode = PG_READ; mode <= PG_PRIVATE; mode++)
            run(seed++, mode, 16384, limits[l], 0);
    if (*pg_codec_name())
        for (size_t b = 0; b < sizeof block_sizes / sizeof *block_sizes; b++)
            for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
                for (int noise = 0; noise <= NOISE; noise += NOISE)
                    run(seed++, PG_WRITE, block_sizes[b], limits[l], MOVING | COMPRESSED | noise);
    for (size_t b = 0; b < sizeof block_sizes / sizeof *block_sizes; b++)
        for (int cuts = 0; cuts < 2; cuts++)
            hand_over(seed++, block_sizes[b], cuts);
    for (int round = 0; round < 4; round++)
        share(seed++, round % 2);
    printf("paging: all passed\n");
    return 0;
}

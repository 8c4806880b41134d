/* What is done with memory, paged or not, and timed: touching words of it, and summing it. The same
 * code for the library and for all baselines. Compiled by _baselines.py. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint64_t sum_words(const uint64_t *words, size_t count)
{
    uint64_t total = 0;

    for (size_t i = 0; i < count; i++)
        total += words[i];
    return total;
}

/* Read a file piece by piece and sum each: to the same place if `stride` is 0. 0 or -errno. */
int sum_by_pread(int file, size_t nbytes, size_t piece, uint8_t *to, size_t stride, uint64_t *total)
{
    *total = 0;
    for (size_t offset = 0; offset < nbytes; offset += piece, to += stride) {
        ssize_t done = pread(file, to, piece, (off_t)offset);
        if (done != (ssize_t)piece)
            return done < 0 ? -errno : -EIO;
        *total += sum_words((const uint64_t *)to, piece / sizeof(uint64_t));
    }
    return 0;
}

static uint64_t touch(uint8_t *start, uint64_t offset, bool to_write, uint64_t value)
{
    volatile uint64_t *word = (volatile uint64_t *)(start + offset);

    if (to_write)
        *word = value;
    return *word;
}

/* Read, or write `value` to, one word at each offset; `took` gets the nanoseconds of each. */
void touch_each(uint8_t *start, const uint64_t *offsets, size_t count, bool to_write,
                uint64_t value, uint64_t *took)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t began = now();
        touch(start, offsets[i], to_write, value);
        took[i] = now() - began;
    }
}

struct toucher {
    pthread_t thread;
    pthread_barrier_t *begin;
    uint8_t *start;
    const uint64_t *offsets;
    size_t count;
};

static void *touch_part(void *argument)
{
    struct toucher *part = argument;

    pthread_barrier_wait(part->begin);
    for (size_t i = 0; i < part->count; i++)
        touch(part->start, part->offsets[i], false, 0);
    return NULL;
}

/* Read a word at each offset, in equal parts by threads that begin together. */
void touch_by_threads(uint8_t *start, const uint64_t *offsets, size_t count, unsigned threads)
{
    struct toucher parts[threads];
    pthread_barrier_t begin;

    pthread_barrier_init(&begin, NULL, threads);
    for (unsigned i = 0; i < threads; i++) {
        size_t from = count * i / threads, to = count * (i + 1) / threads;
        parts[i] = (struct toucher){
            .begin = &begin, .start = start, .offsets = offsets + from, .count = to - from};
        /* Without all of them the others would wait at the barrier. */
        if (pthread_create(&parts[i].thread, NULL, touch_part, &parts[i]))
            abort();
    }
    for (unsigned i = 0; i < threads; i++)
        pthread_join(parts[i].thread, NULL);
    pthread_barrier_destroy(&begin);
}

struct reader {
    pthread_t thread;
    int file;
    const uint64_t *offsets;
    size_t count, nbytes;
    uint8_t *to;
    int error;
};

static void *read_part(void *argument)
{
    struct reader *part = argument;

    for (size_t i = 0; i < part->count && !part->error; i++) {
        ssize_t done =
            pread(part->file, part->to + i * part->nbytes, part->nbytes, (off_t)part->offsets[i]);
        if (done != (ssize_t)part->nbytes)
            part->error = done < 0 ? -errno : -EIO;
    }
    return NULL;
}

/* Read so many bytes from each offset on, one after the other to `to`, in equal parts by threads. 0
 * or -errno. */
int read_by_threads(int file, const uint64_t *offsets, size_t count, size_t nbytes, uint8_t *to,
                    unsigned threads)
{
    struct reader parts[threads];
    int error = 0;

    for (unsigned i = 0; i < threads; i++) {
        size_t from = count * i / threads, end = count * (i + 1) / threads;
        parts[i] = (struct reader){.file = file,
                                   .offsets = offsets + from,
                                   .count = end - from,
                                   .nbytes = nbytes,
                                   .to = to + from * nbytes};
        if (pthread_create(&parts[i].thread, NULL, read_part, &parts[i]))
            abort();
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(parts[i].thread, NULL);
        error = error ? error : parts[i].error;
    }
    return error;
}

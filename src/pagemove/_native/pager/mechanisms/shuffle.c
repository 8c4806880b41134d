#include "pager/mechanisms/shuffle.h"

#include <stdint.h>
#include <string.h>

/* 16 bytes in a register: SSE2 and NEON are there on every x86-64 and arm64, and the compiler knows
 * the instruction for either of these two shuffles. */
typedef uint8_t vector __attribute__((vector_size(16)));

enum { VECTOR = sizeof(vector) };

#if defined(__clang__)
#define LOW(a, b)                                                                                  \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b)                                                                                 \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#else
#define LOW(a, b)                                                                                  \
    __builtin_shuffle(a, b, (vector){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
#define HIGH(a, b)                                                                                 \
    __builtin_shuffle(a, b, (vector){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31})
#endif

/* Interleave the first half of the bytes of some vectors with the second half. In the number of
 * each byte that moves the highest bit to the lowest place: as often as there are bits for the
 * bytes of a word, or for the words, it turns one order into the other. */
static inline __attribute__((always_inline)) void interleave(vector *vectors, unsigned count)
{
    vector next[8];

    for (unsigned i = 0; i < count / 2; i++) {
        next[2 * i] = LOW(vectors[i], vectors[i + count / 2]);
        next[2 * i + 1] = HIGH(vectors[i], vectors[i + count / 2]);
    }
    for (unsigned i = 0; i < count; i++)
        vectors[i] = next[i];
}

/* With eight runs a power of two apart, all of them share few places in the cache: they are written
 * a line at a time. Four runs fit. */
static inline __attribute__((always_inline)) void shuffle(char *to, const char *from, size_t length,
                                                          unsigned width)
{
    const unsigned count = width == 8 ? 4 : 1;
    vector some[8], lines[8][4];
    size_t step = width * VECTOR, run = length / width;

    for (size_t at = 0; at < length; at += count * step) {
        for (unsigned k = 0; k < count; k++) {
            memcpy(some, from + at + k * step, step);
            for (unsigned bits = 0; bits < 4; bits++)
                interleave(some, width);
            for (unsigned i = 0; i < width; i++)
                lines[i][k] = some[i];
        }
        for (unsigned i = 0; i < width; i++)
            memcpy(to + i * run + at / width, lines[i], count * VECTOR);
    }
}

static inline __attribute__((always_inline)) void
unshuffle(char *to, const char *from, size_t length, unsigned width, unsigned bits)
{
    vector some[8];

    for (size_t at = 0; at < length; at += width * VECTOR) {
        for (unsigned i = 0; i < width; i++)
            memcpy(&some[i], from + i * (length / width) + at / width, VECTOR);
        for (unsigned bit = 0; bit < bits; bit++)
            interleave(some, width);
        memcpy(to + at, some, width * VECTOR);
    }
}

void pg_shuffle(enum pg_filter filter, void *to, const void *from, size_t length)
{
    if (filter == PG_WORDS8)
        shuffle(to, from, length, 8);
    else if (filter == PG_WORDS4)
        shuffle(to, from, length, 4);
    else
        memcpy(to, from, length);
}

void pg_unshuffle(enum pg_filter filter, void *to, const void *from, size_t length)
{
    if (filter == PG_WORDS8)
        unshuffle(to, from, length, 8, 3);
    else if (filter == PG_WORDS4)
        unshuffle(to, from, length, 4, 2);
    else
        memcpy(to, from, length);
}

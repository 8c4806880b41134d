/* Streams of the C library: they call the kernel by ways of its own. */
#define _GNU_SOURCE
#include "bounce/bounce.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The functions, where these are macros. */
#undef fread_unlocked
#undef fwrite_unlocked

typedef size_t (*stream_call)(void *memory, size_t size, size_t count, FILE *stream);

static size_t streamed(stream_call real, void *memory, size_t total, FILE *stream, int in)
{
    size_t size = total < PB_PIECE ? total : PB_PIECE, done = 0, moved, nbytes;
    char *piece = malloc(size);

    if (!piece) {
        errno = ENOMEM;
        return 0;
    }
    flockfile(stream);
    do {
        nbytes = total - done < size ? total - done : size;
        if (!in)
            memcpy(piece, (char *)memory + done, nbytes);
        moved = real(piece, 1, nbytes, stream);
        if (in)
            memcpy((char *)memory + done, piece, moved);
        done += moved;
    } while (moved == nbytes && done < total);
    funlockfile(stream);
    free(piece);
    return done;
}

static size_t of_stream(stream_call real, const void *memory, size_t size, size_t count,
                        FILE *stream, int in)
{
    void *address = (void *)(uintptr_t)memory;
    size_t total;

    if (__builtin_mul_overflow(size, count, &total) || !pb_is_paged((uintptr_t)memory, total))
        return real(address, size, count, stream);
    return streamed(real, address, total, stream, in) / size;
}

EXPORTED size_t fread(void *restrict memory, size_t size, size_t count, FILE *restrict file)
{
    return of_stream((stream_call)BEHIND(fread), memory, size, count, file, 1);
}

EXPORTED size_t fread_unlocked(void *restrict memory, size_t size, size_t count,
                               FILE *restrict file)
{
    return of_stream((stream_call)BEHIND(fread_unlocked), memory, size, count, file, 1);
}

EXPORTED size_t fwrite(const void *restrict memory, size_t size, size_t count, FILE *restrict file)
{
    return of_stream((stream_call)BEHIND(fwrite), memory, size, count, file, 0);
}

EXPORTED size_t fwrite_unlocked(const void *restrict memory, size_t size, size_t count,
                                FILE *restrict file)
{
    return of_stream((stream_call)BEHIND(fwrite_unlocked), memory, size, count, file, 0);
}

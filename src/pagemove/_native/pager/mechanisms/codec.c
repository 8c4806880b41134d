#define _GNU_SOURCE
#include "pager/mechanisms/codec.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/mechanisms/shuffle.h"

/* Of each block so much is tried before a filter is chosen; and after so many blocks again. */
enum { SAMPLE = 4096, LEARN_EVERY = 16, ZSTD_LEVEL = 1 };

/* Only what an eighth is saved of is kept compressed. */
#define MOST(length) ((length) - (length) / 8)

static struct {
    pthread_once_t once;
    char name[48];
    int (*lz4_state_size)(void);
    int (*lz4_compress)(void *state, const char *from, char *to, int length, int room, int speed);
    int (*lz4_decompress)(const char *from, char *to, int length, int room);
    void *(*zstd_new_compressor)(void);
    void *(*zstd_new_decompressor)(void);
    size_t (*zstd_free_compressor)(void *context);
    size_t (*zstd_free_decompressor)(void *context);
    size_t (*zstd_compress)(void *context, void *to, size_t room, const void *from, size_t length,
                            int level);
    size_t (*zstd_decompress)(void *context, void *to, size_t room, const void *from,
                              size_t length);
    unsigned (*zstd_is_error)(size_t code);
} codec = {.once = PTHREAD_ONCE_INIT};

struct symbol {
    const char *name;
    void *at; /* of the pointer that it goes to */
};

/* Whether a library has all of them. It stays open: its functions are called until the end. */
static void *open_library(const char *name, const struct symbol *symbols, size_t count)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL), *found;

    for (size_t i = 0; i < count && library; i++) {
        found = dlsym(library, symbols[i].name);
        memcpy(symbols[i].at, &found, sizeof found);
        if (!found) {
            dlclose(library);
            library = NULL;
        }
    }
    return library;
}

static void name_codec(void *library, const char *called, const char *symbol)
{
    const char *(*version)(void);
    void *found = dlsym(library, symbol);

    memcpy(&version, &found, sizeof found);
    snprintf(codec.name, sizeof codec.name, "%s%s%s", called, found ? " " : "",
             found ? version() : "");
}

static void find(void)
{
    const struct symbol lz4[] = {
        {"LZ4_sizeofState", &codec.lz4_state_size},
        {"LZ4_compress_fast_extState", &codec.lz4_compress},
        {"LZ4_decompress_safe", &codec.lz4_decompress},
    };
    const struct symbol zstd[] = {
        {"ZSTD_createCCtx", &codec.zstd_new_compressor},
        {"ZSTD_createDCtx", &codec.zstd_new_decompressor},
        {"ZSTD_freeCCtx", &codec.zstd_free_compressor},
        {"ZSTD_freeDCtx", &codec.zstd_free_decompressor},
        {"ZSTD_compressCCtx", &codec.zstd_compress},
        {"ZSTD_decompressDCtx", &codec.zstd_decompress},
        {"ZSTD_isError", &codec.zstd_is_error},
    };
    const char *wanted = getenv("PAGEMOVE_CODEC");
    void *library = NULL;

    if (!wanted || !*wanted || !strcmp(wanted, "lz4"))
        library = open_library("liblz4.so.1", lz4, sizeof lz4 / sizeof *lz4);
    if (library) {
        name_codec(library, "LZ4", "LZ4_versionString");
        return;
    }
    codec.lz4_compress = NULL;
    if (!wanted || !*wanted || !strcmp(wanted, "zstd"))
        library = open_library("libzstd.so.1", zstd, sizeof zstd / sizeof *zstd);
    if (library)
        name_codec(library, "zstd", "ZSTD_versionString");
    else
        codec.zstd_compress = NULL;
}

const char *pg_codec_name(void)
{
    pthread_once(&codec.once, find);
    return codec.name;
}

struct pg_coder {
    size_t block_size, mapped;
    char *block, *shuffled, *packed;
    void *state, *decompressor; /* of the library */
    unsigned filter, age;       /* the one chosen last, and how many blocks ago */
};

struct pg_coder *pg_coder_new(size_t block_size, int dumped)
{
    struct pg_coder *coder = calloc(1, sizeof *coder);

    if (!coder)
        return NULL;
    coder->block_size = block_size;
    coder->mapped = 3 * block_size;
    coder->block = mmap(NULL, coder->mapped, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (coder->block == MAP_FAILED) {
        free(coder);
        return NULL;
    }
    if (!dumped)
        madvise(coder->block, coder->mapped, MADV_DONTDUMP);
    coder->shuffled = coder->block + block_size;
    coder->packed = coder->shuffled + block_size;
    if (codec.lz4_compress) {
        coder->state = malloc((size_t)codec.lz4_state_size());
    } else if (!codec.zstd_compress) {
        return coder; /* nothing shrinks */
    } else {
        coder->state = codec.zstd_new_compressor();
        coder->decompressor = codec.zstd_new_decompressor();
    }
    if (coder->state && (codec.lz4_compress || coder->decompressor))
        return coder;
    pg_coder_free(coder);
    return NULL;
}

void pg_coder_free(struct pg_coder *coder)
{
    if (codec.lz4_compress) {
        free(coder->state);
    } else if (codec.zstd_compress) {
        codec.zstd_free_compressor(coder->state); /* NULL does nothing */
        codec.zstd_free_decompressor(coder->decompressor);
    }
    munmap(coder->block, coder->mapped);
    free(coder);
}

char *pg_coder_block(const struct pg_coder *coder)
{
    return coder->block;
}

char *pg_coder_packed(const struct pg_coder *coder)
{
    return coder->packed;
}

/* Bytes that it becomes, at most `room`; 0: more. */
static size_t compress(const struct pg_coder *coder, const void *from, size_t length, size_t room)
{
    size_t size;
    int got;

    if (codec.lz4_compress) {
        got = codec.lz4_compress(coder->state, from, coder->packed, (int)length, (int)room, 1);
        return got > 0 ? (size_t)got : 0;
    }
    size = codec.zstd_compress(coder->state, coder->packed, room, from, length, ZSTD_LEVEL);
    return codec.zstd_is_error(size) ? 0 : size;
}

static size_t compress_part(struct pg_coder *coder, const char *from, size_t length,
                            unsigned filter)
{
    if (filter == PG_PLAIN)
        return compress(coder, from, length, MOST(length));
    pg_shuffle(filter, coder->shuffled, from, length);
    return compress(coder, coder->shuffled, length, MOST(length));
}

static size_t compress_filtered(struct pg_coder *coder, const void *block, unsigned filter)
{
    return compress_part(coder, block, coder->block_size, filter);
}

/* Which filter does best with a part of the block; PG_FILTERS: nothing helps. */
static unsigned choose(struct pg_coder *coder, const char *block)
{
    size_t length = coder->block_size < SAMPLE ? coder->block_size : SAMPLE, least = length;
    const char *part = block + (coder->block_size - length) / 2;
    unsigned best = PG_FILTERS;

    for (unsigned filter = 0; filter < PG_FILTERS; filter++) {
        size_t size = compress_part(coder, part, length, filter);
        if (size && size < least) {
            least = size;
            best = filter;
        }
    }
    return best;
}

size_t pg_pack(struct pg_coder *coder, const void *block, unsigned *filter)
{
    unsigned chosen = coder->filter;
    size_t size = 0;

    *filter = PG_PLAIN;
    if (!coder->state)
        return 0;
    if (chosen == PG_FILTERS || coder->age++ % LEARN_EVERY == 0)
        chosen = choose(coder, block);
    /* A part may mislead. LZ4 soon gives up what it finds nothing in; zstd does not. */
    if (chosen != PG_FILTERS || codec.lz4_compress)
        size = compress_filtered(coder, block, chosen == PG_FILTERS ? PG_PLAIN : chosen);
    if (!size && chosen == coder->filter && chosen != PG_FILTERS) {
        /* What was best for the blocks before is not for this one, or nothing is. */
        chosen = choose(coder, block);
        if (chosen != PG_FILTERS && chosen != coder->filter)
            size = compress_filtered(coder, block, chosen);
    }
    coder->filter = chosen;
    *filter = chosen == PG_FILTERS ? PG_PLAIN : chosen;
    return size;
}

int pg_unpack(struct pg_coder *coder, size_t length, unsigned filter, void *block)
{
    void *to = filter == PG_PLAIN ? block : coder->shuffled;
    size_t size = coder->block_size, got;

    if (codec.lz4_compress) {
        int done = codec.lz4_decompress(coder->packed, to, (int)length, (int)size);
        got = done < 0 ? 0 : (size_t)done;
    } else {
        got = codec.zstd_decompress(coder->decompressor, to, size, coder->packed, length);
    }
    if (got != size)
        return -EIO;
    if (filter != PG_PLAIN)
        pg_unshuffle(filter, block, coder->shuffled, size);
    return 0;
}

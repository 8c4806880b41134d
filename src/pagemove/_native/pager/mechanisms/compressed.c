#define _GNU_SOURCE
#include "pager/mechanisms/compressed.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/mechanisms/checksum.h"
#include "pager/mechanisms/kept.h"
#include "pager/mechanisms/unnamed.h"

static size_t table_bytes(const struct pg_compressed *memory)
{
    return memory->blocks * sizeof(*memory->kept);
}

static void note_moved(void *context, uint32_t owner, pg_place place)
{
    struct pg_compressed *memory = context;

    memory->kept[owner].word = place;
}

/* The first file for what has no room; -1: there is to be none. */
static int open_spill(const char *directory, int *spill, char text[PG_TEXT])
{
    char why[PG_UNNAMED_TEXT];

    *spill = directory ? pg_open_unnamed(directory) : -1;
    if (!directory || *spill >= 0)
        return 0;
    if (pg_explain_unnamed(directory, -*spill, "name", why))
        snprintf(text, PG_TEXT,
                 "spill names %.1000s for what has no room in memory, which takes no unnamed "
                 "file: %s, or leave spill out",
                 directory, why);
    return *spill;
}

static int make(const struct pg_config *config, struct pg_compressed *memory)
{
    const struct pg_compression *wanted = config->compression;

    pthread_mutex_init(&memory->lock, NULL);
    memory->nbytes = config->nbytes;
    memory->block_size = config->block_size;
    memory->limit = wanted->limit ? wanted->limit : UINT64_MAX;
    memory->blocks = (uint32_t)((config->nbytes + config->block_size - 1) / config->block_size);
    pg_coders_init(&memory->coders, config->block_size, config->dumped);
    memory->spill_name = strdup(wanted->spill ? wanted->spill : "");
    memory->slabs = pg_slabs_new(config->block_size, config->dumped, note_moved, memory);
    memory->kept = mmap(NULL, table_bytes(memory), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory->kept == MAP_FAILED)
        memory->kept = NULL;
    memory->files = malloc(sizeof *memory->files);
    if (memory->files)
        pg_spills_init(memory->files, memory->spill_name, config->block_size);
    return memory->spill_name && memory->slabs && memory->kept && memory->files ? 0 : -ENOMEM;
}

int pg_compressed_open(const struct pg_config *config, struct pg_compressed **opened,
                       char text[PG_TEXT])
{
    struct pg_compressed *memory = calloc(1, sizeof *memory);
    int spill, error = memory ? make(config, memory) : -ENOMEM;

    if (!error)
        error = open_spill(config->compression->spill, &spill, text);
    if (error) {
        if (memory)
            pg_compressed_close(memory);
        return error;
    }
    memory->spills = spill >= 0;
    if (memory->spills)
        pg_spills_begin(memory->files, spill);
    *opened = memory;
    return 0;
}

void pg_compressed_close(struct pg_compressed *memory)
{
    pg_coders_free(&memory->coders);
    pg_slabs_free(memory->slabs);
    if (memory->kept)
        munmap(memory->kept, table_bytes(memory));
    if (memory->files)
        pg_spills_free(memory->files);
    free(memory->files);
    free(memory->spill_name);
    free(memory);
}

pthread_mutex_t *pg_compressed_lock(struct pg_compressed *memory)
{
    return &memory->lock;
}

void pg_compressed_forked(struct pg_compressed *memory)
{
    pthread_mutex_init(&memory->lock, NULL);
    pg_spills_accept(memory->files);
    pg_coders_forked(&memory->coders);
}

struct pg_spills *pg_compressed_files(const struct pg_compressed *memory)
{
    return memory->files;
}

void pg_compressed_thaw(struct pg_compressed *memory)
{
    pthread_mutex_lock(&memory->lock);
    pg_spills_thaw(memory->files);
    pthread_mutex_unlock(&memory->lock);
}

/* Reading. */

static void repeat(void *to, uint64_t word, uint64_t length)
{
    uint64_t *words = to;

    if (!word) {
        memset(to, 0, length);
        return;
    }
    for (uint64_t i = 0; i < length / sizeof word; i++)
        words[i] = word;
}

static int read_spilled(struct pg_compressed *memory, const struct kept *kept, char *to, int nowait,
                        char text[PG_TEXT])
{
    int error = pg_read_spilled(memory->files, pg_place_of(kept), to, nowait);

    if (error == -PG_NOT_NOW)
        return error;
    if (error) {
        snprintf(text, PG_TEXT, "the unnamed file of spilled blocks in %.1000s cannot be read",
                 memory->spill_name);
        return error;
    }
    if (pg_checksum(to, memory->block_size) == kept->word)
        return 0;
    snprintf(text, PG_TEXT,
             "the block has changed in the unnamed file of spilled blocks in %.1000s: check the "
             "device, and compute it again",
             memory->spill_name);
    return -EIO;
}

/* A whole block. Of one that is compressed the bytes are copied first, for when another thread
 * frees something they may be moved. */
static int read_block(struct pg_compressed *memory, struct pg_coder *coder, uint32_t block,
                      char *to, int nowait, char text[PG_TEXT])
{
    struct kept kept;

    pthread_mutex_lock(&memory->lock);
    kept = memory->kept[block];
    if (kept.kind == PACKED)
        memcpy(pg_coder_packed(coder), pg_slabs_at(memory->slabs, kept.word), kept.length);
    else if (kept.kind == RAW)
        memcpy(to, pg_slabs_at(memory->slabs, kept.word), memory->block_size);
    pthread_mutex_unlock(&memory->lock);
    if (kept.kind == SAME || kept.kind == IN_PLACE) {
        /* Of one in place what the program has discarded is asked for: zeros. */
        repeat(to, kept.word, memory->block_size);
    } else if (kept.kind == PACKED) {
        if (!pg_unpack(coder, kept.length, kept.filter, to))
            return 0;
        snprintf(text, PG_TEXT, "its compressed bytes have changed in memory");
        return -EIO;
    } else if (kept.kind == SPILLED) {
        return read_spilled(memory, &kept, to, nowait, text);
    }
    return 0;
}
/* A part of a block, of which the rest stays as it is. */
static int write_part(struct pg_compressed *memory, struct pg_coder *coder, uint32_t block,
                      uint64_t start, const char *bytes, uint64_t length, char text[PG_TEXT])
{
    char *whole = pg_coder_block(coder);
    int error = read_block(memory, coder, block, whole, 0, text);

    if (error)
        return error;
    memcpy(whole + start, bytes, length);
    return pg_keep_block(memory, coder, block, whole, 0, text);
}

static int read_part(struct pg_compressed *memory, struct pg_coder *coder, uint32_t block,
                     uint64_t start, char *to, uint64_t length, int nowait, char text[PG_TEXT])
{
    char *whole = pg_coder_block(coder);
    int error = read_block(memory, coder, block, whole, nowait, text);

    if (!error)
        memcpy(to, whole + start, length);
    return error;
}

static int transfer(struct pg_compressed *memory, struct pg_coder *coder, uint64_t offset,
                    const struct iovec *piece, int writing, int nowait, char text[PG_TEXT])
{
    uint64_t size = memory->block_size, length;
    int error = 0;

    for (uint64_t done = 0; done < piece->iov_len && !error; done += length) {
        uint32_t block = (uint32_t)((offset + done) / size);
        uint64_t start = (offset + done) % size;
        char *bytes = (char *)piece->iov_base + done;
        length = piece->iov_len - done < size - start ? piece->iov_len - done : size - start;
        if (length == size)
            error = writing ? pg_keep_block(memory, coder, block, bytes, 0, text)
                            : read_block(memory, coder, block, bytes, nowait, text);
        else
            error = writing ? write_part(memory, coder, block, start, bytes, length, text)
                            : read_part(memory, coder, block, start, bytes, length, nowait, text);
    }
    return error;
}

static int transfer_all(struct pg_compressed *memory, uint64_t offset, const struct iovec *vector,
                        size_t count, int writing, int nowait, char text[PG_TEXT])
{
    struct pg_idle *idle = pg_borrow(&memory->coders);
    int error = idle ? 0 : -ENOMEM;

    text[0] = 0;
    for (size_t i = 0; i < count && !error; i++) {
        error = transfer(memory, idle->coder, offset, &vector[i], writing, nowait, text);
        offset += vector[i].iov_len;
    }
    if (idle)
        pg_give_back(&memory->coders, idle);
    return error;
}

int pg_compressed_read(struct pg_compressed *memory, uint64_t offset, const struct iovec *vector,
                       size_t count, int nowait, char text[PG_TEXT])
{
    return transfer_all(memory, offset, vector, count, 0, nowait, text);
}

int pg_compressed_write(struct pg_compressed *memory, uint64_t offset, const struct iovec *vector,
                        size_t count, char text[PG_TEXT])
{
    return transfer_all(memory, offset, vector, count, 1, 0, text);
}

int pg_compressed_offer(struct pg_compressed *memory, uint32_t block, const void *bytes,
                        char text[PG_TEXT])
{
    struct pg_idle *idle = pg_borrow(&memory->coders);
    int error;

    text[0] = 0;
    if (!idle)
        return -ENOMEM;
    error = pg_keep_block(memory, idle->coder, block, bytes, 1, text);
    pg_give_back(&memory->coders, idle);
    return error;
}

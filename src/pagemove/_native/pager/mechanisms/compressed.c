#define _GNU_SOURCE
#include "pager/mechanisms/compressed.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/mechanisms/checksum.h"
#include "pager/mechanisms/kept.h"

static size_t table_bytes(const struct pg_compressed *memory)
{
    return memory->blocks * sizeof(*memory->kept);
}

static void note_moved(void *context, uint32_t owner, pg_place place)
{
    struct pg_compressed *memory = context;

    memory->kept[owner].word = place;
}

int pg_compressed_open(const struct pg_compression *wanted, uint64_t nbytes, uint64_t block_size,
                       int dumped, int spill, struct pg_compressed **opened)
{
    struct pg_compressed *memory = calloc(1, sizeof *memory);

    if (!memory)
        return -ENOMEM;
    pthread_mutex_init(&memory->lock, NULL);
    memory->nbytes = nbytes;
    memory->block_size = block_size;
    memory->limit = wanted->limit ? wanted->limit : UINT64_MAX;
    memory->blocks = (uint32_t)((nbytes + block_size - 1) / block_size);
    pg_coders_init(&memory->coders, block_size, dumped);
    memory->spill_name = strdup(wanted->spill ? wanted->spill : "");
    memory->slabs = pg_slabs_new(block_size, dumped, note_moved, memory);
    memory->kept = mmap(NULL, table_bytes(memory), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory->kept == MAP_FAILED)
        memory->kept = NULL;
    memory->files = calloc(1, sizeof *memory->files);
    if (!memory->spill_name || !memory->slabs || !memory->kept || !memory->files) {
        pg_compressed_close(memory);
        return -ENOMEM;
    }
    memory->spills = spill >= 0;
    pg_spills_init(memory->files, memory->spill_name, block_size, spill);
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

static struct pg_spilled place_of(const struct kept *kept)
{
    return (struct pg_spilled){kept->length, kept->filter};
}

static int read_spilled(struct pg_compressed *memory, const struct kept *kept, char *to, int nowait,
                        char text[PG_TEXT])
{
    int error = pg_read_spilled(memory->files, place_of(kept), to, nowait);

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

/* Writing. */

/* Whether all words of a block are its first. */
static int is_repeated(const void *block, uint64_t length)
{
    uint64_t word;

    return !memcmp(block, (const char *)block + sizeof word, length - sizeof word);
}

static void count(struct pg_compressed *memory, const struct kept *kept, int64_t change)
{
    if (kept->kind == SAME && !kept->word)
        return;
    memory->counts[kept->kind] += (uint64_t)change;
    if (kept->kind == PACKED)
        memory->packed += (uint64_t)change * kept->length;
}

/* Note how a block is kept from now on. Wants the lock. */
static void note(struct pg_compressed *memory, uint32_t block, struct kept kept)
{
    count(memory, &memory->kept[block], -1);
    count(memory, &kept, 1);
    memory->kept[block] = kept;
}

static int is_in_slabs(const struct kept *kept)
{
    return kept->kind == PACKED || kept->kind == RAW;
}

/* What was in a file is not any more. */
static void leave_file(struct pg_compressed *memory, const struct kept *before)
{
    if (before->kind != SPILLED)
        return;
    pg_empty_spilled(memory->files, place_of(before));
    pthread_mutex_lock(&memory->lock);
    pg_give_place(memory->files, place_of(before));
    pthread_mutex_unlock(&memory->lock);
}

/* Note it of a block that takes no memory any more. */
static void note_outside(struct pg_compressed *memory, uint32_t block, struct kept kept)
{
    struct kept before;

    pthread_mutex_lock(&memory->lock);
    before = memory->kept[block];
    note(memory, block, kept);
    if (is_in_slabs(&before))
        pg_slabs_drop(memory->slabs, before.word);
    /* Its place is written again soon. */
    if (before.kind == SPILLED && kept.kind == SPILLED)
        pg_give_place(memory->files, place_of(&before));
    pthread_mutex_unlock(&memory->lock);
    if (kept.kind != SPILLED)
        leave_file(memory, &before);
}

/* Bytes that slabs may take when the block is kept there. One that was in place and shrinks may
 * open a slab, though that counts for more: the rest of it takes no memory before others have
 * shrunk, which there would otherwise be no room for. Wants the lock. */
static uint64_t most_in_slabs(const struct pg_compressed *memory, const struct kept *before,
                              const struct kept *after)
{
    uint64_t others = pg_bytes_in_place(memory), most = memory->limit;

    if (most == UINT64_MAX)
        return most;
    if (before->kind == IN_PLACE) {
        others -= memory->block_size;
        most += after->kind == PACKED ? pg_slabs_largest(memory->slabs) - memory->block_size : 0;
    }
    return others < most ? most - others : 0;
}

/* Keep the bytes of a block in memory. 0, -ENOSPC: there is no room, or -ENOMEM. */
static int keep(struct pg_compressed *memory, uint32_t block, struct kept kept, const void *bytes,
                size_t length)
{
    struct kept before;
    int error;

    pthread_mutex_lock(&memory->lock);
    before = memory->kept[block];
    error = pg_slabs_put(memory->slabs, block, bytes, length, most_in_slabs(memory, &before, &kept),
                         is_in_slabs(&before), before.word, &kept.word);
    if (!error)
        note(memory, block, kept);
    pg_note_peak(memory);
    pthread_mutex_unlock(&memory->lock);
    if (!error)
        leave_file(memory, &before);
    return error;
}

/* Write a block to a file, as it is. What the file had of it stays until that is done. */
static int spill(struct pg_compressed *memory, uint32_t block, const char *bytes)
{
    struct kept kept = {.kind = SPILLED};
    struct pg_spilled at;
    int error;

    pthread_mutex_lock(&memory->lock);
    error = pg_take_place(memory->files, &at);
    pthread_mutex_unlock(&memory->lock);
    if (error)
        return error;
    kept.length = at.place;
    kept.filter = at.file;
    error = pg_write_spilled(memory->files, at, bytes);
    if (error) {
        leave_file(memory, &kept);
        return error;
    }
    kept.word = pg_checksum(bytes, memory->block_size);
    note_outside(memory, block, kept);
    return 0;
}

/* Whether a block is in place, or may be, as far as there is room. */
static int may_stay(struct pg_compressed *memory, uint32_t block, int offered)
{
    int may;

    pthread_mutex_lock(&memory->lock);
    may = memory->kept[block].kind == IN_PLACE || (offered && pg_has_room_in_place(memory));
    pthread_mutex_unlock(&memory->lock);
    return may;
}

/* What is in place takes no less where there is no room to compress it, and stays. */
static int refuse(struct pg_compressed *memory, uint32_t block, int error, int spilled,
                  char text[PG_TEXT])
{
    return may_stay(memory, block, 0) ? -PG_STAYS : pg_explain_full(memory, error, spilled, text);
}

/* Whether a block would be compressed only to find that there is no room for that. */
static int is_crowded(struct pg_compressed *memory, uint32_t block)
{
    uint64_t bytes;
    int has;

    pthread_mutex_lock(&memory->lock);
    bytes = memory->packed + memory->counts[RAW] * memory->block_size;
    has = is_in_slabs(&memory->kept[block]);
    pthread_mutex_unlock(&memory->lock);
    return !has && memory->limit != UINT64_MAX && bytes > memory->limit - memory->limit / 16;
}

static int write_block(struct pg_compressed *memory, struct pg_coder *coder, uint32_t block,
                       const char *bytes, int offered, char text[PG_TEXT])
{
    struct kept kept = {.kind = RAW};
    unsigned filter;
    int error, spilled = 0;

    if (is_repeated(bytes, memory->block_size)) {
        kept.kind = SAME;
        memcpy(&kept.word, bytes, sizeof kept.word);
        note_outside(memory, block, kept);
        return 0;
    }
    if (!memory->spills || !is_crowded(memory, block)) {
        kept.length = (uint32_t)pg_pack(coder, bytes, &filter);
        kept.filter = (uint8_t)filter;
    }
    if (kept.length) {
        kept.kind = PACKED;
        error = keep(memory, block, kept, pg_coder_packed(coder), kept.length);
        if (error && memory->spills)
            spilled = spill(memory, block, bytes);
        else if (!error)
            return 0;
        return memory->spills && !spilled ? 0 : refuse(memory, block, error, spilled, text);
    }
    if (memory->spills) {
        spilled = spill(memory, block, bytes);
        if (!spilled)
            return 0;
    }
    if (offered && !memory->spills && may_stay(memory, block, 1))
        return -PG_STAYS;
    error = keep(memory, block, kept, bytes, memory->block_size);
    return error ? refuse(memory, block, error, spilled, text) : 0;
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
    return write_block(memory, coder, block, whole, 0, text);
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
            error = writing ? write_block(memory, coder, block, bytes, 0, text)
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
    error = write_block(memory, idle->coder, block, bytes, 1, text);
    pg_give_back(&memory->coders, idle);
    return error;
}

int pg_compressed_stay(struct pg_compressed *memory, uint32_t block, int again, char text[PG_TEXT])
{
    struct kept before;
    int room;

    pthread_mutex_lock(&memory->lock);
    before = memory->kept[block];
    room = again || pg_has_room_in_place(memory);
    if (room && before.kind != IN_PLACE) {
        note(memory, block, (struct kept){.kind = IN_PLACE});
        if (is_in_slabs(&before))
            pg_slabs_drop(memory->slabs, before.word);
        pg_note_peak(memory);
    }
    pthread_mutex_unlock(&memory->lock);
    return room ? 0 : pg_explain_full(memory, -ENOSPC, 0, text);
}

int pg_compressed_shift(struct pg_compressed *memory, uint32_t to, uint32_t from)
{
    struct kept *kept = memory->kept;
    int error = 0;

    pthread_mutex_lock(&memory->lock);
    if (kept[to].kind != SAME || kept[to].word) {
        error = -EEXIST;
    } else {
        kept[to] = kept[from];
        kept[from] = (struct kept){.kind = SAME};
        if (is_in_slabs(&kept[to]))
            pg_slabs_own(memory->slabs, kept[to].word, to);
    }
    pthread_mutex_unlock(&memory->lock);
    return error;
}

int pg_compressed_is_same(const struct pg_compressed *memory, uint32_t block)
{
    return memory->kept[block].kind == SAME;
}

void pg_compressed_discard(struct pg_compressed *memory, uint32_t first, uint64_t count)
{
    for (uint64_t block = first; block < first + count && block < memory->blocks; block++)
        note_outside(memory, (uint32_t)block, (struct kept){.kind = SAME});
}

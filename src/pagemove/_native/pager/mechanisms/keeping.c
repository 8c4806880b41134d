/* How each block is kept: as one word, in slabs, in a file, or in its place in the region. */
#include <errno.h>
#include <string.h>

#include "pager/mechanisms/checksum.h"
#include "pager/mechanisms/kept.h"

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
    int alone;

    if (before->kind != SPILLED)
        return;
    pthread_mutex_lock(&memory->lock);
    alone = pg_is_own_place(memory->files, pg_place_of(before));
    pthread_mutex_unlock(&memory->lock);
    if (alone)
        pg_empty_spilled(memory->files, pg_place_of(before));
    pthread_mutex_lock(&memory->lock);
    pg_give_place(memory->files, pg_place_of(before));
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
        pg_give_place(memory->files, pg_place_of(&before));
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

int pg_keep_block(struct pg_compressed *memory, struct pg_coder *coder, uint32_t block,
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

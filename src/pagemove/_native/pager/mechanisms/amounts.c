/* How much compressed memory holds, and takes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "pager/mechanisms/kept.h"

uint64_t pg_bytes_in_place(const struct pg_compressed *memory)
{
    return memory->counts[IN_PLACE] * memory->block_size;
}

uint64_t pg_bytes_kept(const struct pg_compressed *memory)
{
    return pg_slabs_bytes(memory->slabs) + pg_bytes_in_place(memory);
}

void pg_note_peak(struct pg_compressed *memory)
{
    if (memory->peak < pg_bytes_kept(memory))
        memory->peak = pg_bytes_kept(memory);
}

int pg_has_room_in_place(const struct pg_compressed *memory)
{
    uint64_t bytes = pg_bytes_kept(memory);

    return bytes < memory->limit && memory->limit - bytes >= memory->block_size;
}

int pg_explain_full(struct pg_compressed *memory, int error, int spilled, char text[PG_TEXT])
{
    char also[PG_TEXT / 2] = "";
    uint64_t bytes;

    pthread_mutex_lock(&memory->lock);
    bytes = pg_bytes_kept(memory);
    pthread_mutex_unlock(&memory->lock);

    if (spilled)
        snprintf(also, sizeof also, ", and the unnamed file in %.1000s (spill) takes none: %s",
                 memory->spill_name, strerror(-spilled));
    if (error == -ENOSPC)
        snprintf(text, PG_TEXT,
                 "store_limit is full: compressed blocks take %llu bytes of %llu%s; raise "
                 "store_limit, %s, or free data by setting it to zero",
                 (unsigned long long)bytes, (unsigned long long)memory->limit, also,
                 !spilled ? "name a directory with spill="
                 : spilled == -ENOSPC || spilled == -EDQUOT || spilled == -EFBIG
                     ? "make room in that directory"
                     : "have that directory take files");
    else
        snprintf(text, PG_TEXT, "no memory for its compressed bytes%s", also);
    return error;
}

/* Of how many more bytes there is an idea of how they shrink, and where they go. */
struct foresight {
    double all;     /* bytes that there is room for where nothing shrinks, taken ones included */
    double outside; /* bytes that the file system has */
    double room;    /* bytes that memory has */
    double shrunk;  /* bytes of memory for one that shrinks */
    double whole;   /* the part of them that does not shrink; all, where little is known */
};

enum { KNOWN = 16 /* blocks */ };

static struct foresight foresee(struct pg_compressed *memory)
{
    struct foresight seen = {.shrunk = 1};
    uint64_t bytes, inside, outside;

    pthread_mutex_lock(&memory->lock);
    bytes = pg_bytes_kept(memory);
    inside = memory->counts[SAME] + memory->counts[PACKED] + memory->counts[RAW] +
             memory->counts[IN_PLACE];
    outside = memory->counts[SPILLED];
    if (memory->spills)
        seen.outside = (double)pg_room_to_spill(memory->files);
    pthread_mutex_unlock(&memory->lock);
    seen.all = (double)memory->limit + seen.outside + (double)(outside * memory->block_size);
    seen.room = memory->limit > bytes ? (double)(memory->limit - bytes) : 0;
    if (bytes)
        seen.shrunk = (double)bytes / (double)(inside * memory->block_size);
    if (memory->spills)
        seen.whole = (double)(outside + KNOWN) / (double)(outside + KNOWN + inside);
    return seen;
}

int pg_compressed_is_full(struct pg_compressed *memory, uint64_t more, uint64_t spare)
{
    struct foresight seen;
    double outside, room, most;

    if (memory->limit == UINT64_MAX)
        return 0;
    seen = foresee(memory);
    if (!memory->spills && seen.room > (double)memory->limit / 2)
        return 0;
    most = (double)spare < seen.all / 4 || !memory->spills ? (double)spare : seen.all / 4;
    most += (double)more;
    /* What does not shrink goes to the file as long as that has room, and what does to memory. */
    outside = seen.outside - most * seen.whole;
    room = seen.room - most * (1 - seen.whole) * seen.shrunk;
    if (outside < 0)
        return room + outside < 0;
    return room < 0 && outside + room / seen.shrunk < 0;
}

void pg_compressed_stats(struct pg_compressed *memory, char text[PG_TEXT])
{
    uint64_t counts[KINDS], packed, bytes, peak, stored, all, raw;

    pthread_mutex_lock(&memory->lock);
    memcpy(counts, memory->counts, sizeof counts);
    packed = memory->packed;
    bytes = pg_bytes_kept(memory);
    peak = memory->peak;
    pthread_mutex_unlock(&memory->lock);
    raw = counts[RAW] + counts[IN_PLACE];
    all = counts[SAME] + counts[PACKED] + raw + counts[SPILLED];
    stored =
        counts[SAME] * sizeof(uint64_t) + packed + (raw + counts[SPILLED]) * memory->block_size;
    snprintf(text, PG_TEXT,
             "{\"blocks\": %llu, \"stored_nbytes\": %llu, \"ratio\": %.6g, "
             "\"memory_nbytes\": %llu, \"peak_memory_nbytes\": %llu, \"same_value_blocks\": %llu, "
             "\"compressed_blocks\": %llu, \"incompressible_blocks\": %llu, "
             "\"in_place_blocks\": %llu, \"spilled_blocks\": %llu, \"spilled_nbytes\": %llu}",
             (unsigned long long)all, (unsigned long long)stored,
             stored ? (double)all * (double)memory->block_size / (double)stored : 0,
             (unsigned long long)bytes, (unsigned long long)peak, (unsigned long long)counts[SAME],
             (unsigned long long)counts[PACKED], (unsigned long long)raw,
             (unsigned long long)counts[IN_PLACE], (unsigned long long)counts[SPILLED],
             (unsigned long long)(counts[SPILLED] * memory->block_size));
}

int pg_compressed_spills(const struct pg_compressed *memory)
{
    return memory->spills;
}

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
                 spilled ? "make room in that directory" : "name a directory with spill=");
    else
        snprintf(text, PG_TEXT, "no memory for its compressed bytes%s", also);
    return error;
}

int pg_compressed_is_full(struct pg_compressed *memory, uint64_t more)
{
    uint64_t bytes, blocks, room;

    pthread_mutex_lock(&memory->lock);
    bytes = pg_bytes_kept(memory);
    blocks = memory->counts[SAME] + memory->counts[PACKED] + memory->counts[RAW] +
             memory->counts[IN_PLACE];
    pthread_mutex_unlock(&memory->lock);
    if (memory->limit == UINT64_MAX || memory->spill >= 0 || bytes < memory->limit / 2)
        return 0;
    room = memory->limit > bytes ? memory->limit - bytes : 0;
    return (double)room * (double)(blocks * memory->block_size) / (double)bytes < (double)more;
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

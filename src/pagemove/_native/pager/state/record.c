/* The order in which blocks are first needed, so that it can be read ahead next time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/region.h"

static uint64_t recorded_bytes(const struct pg_region *region)
{
    return (region->nblocks / 64 + 1) * sizeof *region->recorded;
}

int pg_record(struct pg_region *region)
{
    int error = 0;

    pthread_mutex_lock(&region->lock);
    if (!region->recorded) {
        void *bits = mmap(NULL, recorded_bytes(region), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (bits == MAP_FAILED)
            error = -errno;
        else
            region->recorded = bits;
    }
    pthread_mutex_unlock(&region->lock);
    return error;
}

void pg_note_needed(struct pg_region *region, uint32_t number)
{
    uint64_t bit = UINT64_C(1) << number % 64;

    if (!region->recorded || region->recorded[number / 64] & bit)
        return;
    if (region->record_count == region->record_room) {
        uint32_t room = region->record_room ? 2 * region->record_room : 1024;
        uint32_t *larger = realloc(region->record, room * sizeof *larger);
        if (!larger)
            return; /* a hint that is missing costs time, nothing else */
        region->record = larger;
        region->record_room = room;
    }
    region->recorded[number / 64] |= bit;
    region->record[region->record_count++] = number;
}

uint32_t pg_recorded(struct pg_region *region, uint32_t *numbers, uint32_t most)
{
    uint32_t count;

    pthread_mutex_lock(&region->lock);
    count = region->record_count;
    if (count && most)
        memcpy(numbers, region->record, (count < most ? count : most) * sizeof *numbers);
    pthread_mutex_unlock(&region->lock);
    return count;
}

void pg_record_free(struct pg_region *region)
{
    if (region->recorded)
        munmap(region->recorded, recorded_bytes(region));
    free(region->record);
}

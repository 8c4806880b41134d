#define _GNU_SOURCE
#include "pager/mechanisms/staging.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#include "uapi.h"

static uint64_t round_up(uint64_t value)
{
    return (value + PG_HUGE_SIZE - 1) & ~(PG_HUGE_SIZE - 1);
}

/* Slots of both kinds in one mapping, each kind at a multiple of 2 MiB. */
static uint64_t staging_length(const struct pg_frames *frames)
{
    return round_up(frames->outgoing_slots * frames->block_size) +
           round_up(frames->incoming_slots * frames->block_size);
}

uint64_t pg_map_aligned(uint64_t length, int dumped)
{
    char *found = mmap(NULL, length + PG_HUGE_SIZE, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t start, lead;

    if (found == MAP_FAILED)
        return 0;
    start = round_up((uint64_t)(uintptr_t)found);
    lead = start - (uint64_t)(uintptr_t)found;
    if (lead)
        munmap(found, lead);
    munmap((void *)(uintptr_t)(start + length), PG_HUGE_SIZE - lead);
    /* After mlockall(MCL_FUTURE) memory that can be touched is filled with zeros at once: unlock it
     * first. A child made by fork has neither the pager nor its threads. A core dump would look at
     * every page there might be, and touch those that are not there. */
    if (munlock((void *)(uintptr_t)start, length) ||
        mprotect((void *)(uintptr_t)start, length, PROT_READ | PROT_WRITE) ||
        madvise((void *)(uintptr_t)start, length, MADV_DONTFORK) ||
        (!dumped && madvise((void *)(uintptr_t)start, length, MADV_DONTDUMP))) {
        int error = errno;
        munmap((void *)(uintptr_t)start, length);
        errno = error;
        return 0;
    }
    /* Merged pages cannot move. Where the kernel does not merge, it does not know the advice. */
    madvise((void *)(uintptr_t)start, length, MADV_UNMERGEABLE);
    return start;
}

void pg_staging_unmerge(const struct pg_frames *frames)
{
    madvise((void *)(uintptr_t)frames->outgoing, staging_length(frames), MADV_UNMERGEABLE);
}

int pg_staging_init(struct pg_frames *frames, const struct pg_uffd *uffd, uint64_t block_size,
                    uint16_t outgoing_slots, uint16_t incoming_slots, int huge)
{
    int advice = huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    int error = pg_frames_init(frames, block_size, outgoing_slots, incoming_slots);

    if (error)
        return error;
    frames->outgoing = pg_map_aligned(staging_length(frames), 0);
    if (!frames->outgoing) {
        error = errno ? -errno : -ENOMEM;
        pg_staging_free(frames);
        return error;
    }
    frames->incoming = frames->outgoing + round_up(outgoing_slots * block_size);
    madvise((void *)(uintptr_t)frames->outgoing, staging_length(frames), advice);
    error = pg_register(uffd->staging, frames->outgoing, round_up(outgoing_slots * block_size),
                        PM_REGISTER_MODE_MISSING);
    if (error)
        pg_staging_free(frames);
    return error;
}

void pg_staging_free(struct pg_frames *frames)
{
    if (frames->outgoing)
        munmap((void *)(uintptr_t)frames->outgoing, staging_length(frames));
    pg_frames_free(frames);
}

void pg_empty_slot(struct pg_frames *frames, uint16_t slot)
{
    pg_empty_pages(pg_slot_address(frames, slot), frames->block_size);
    pg_give_empty(frames, slot);
}

void pg_give_up(struct pg_frames *frames, uint16_t slot)
{
    pg_empty_pages(pg_slot_address(frames, slot), frames->block_size);
    pg_note_given_up(frames, slot);
}

#define _GNU_SOURCE
#include "pager/state/frames.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/state/blocks.h"
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

void pg_frames_unmerge(const struct pg_frames *frames)
{
    madvise((void *)(uintptr_t)frames->outgoing, staging_length(frames), MADV_UNMERGEABLE);
}

int pg_frames_init(struct pg_frames *frames, const struct pg_uffd *uffd, uint64_t block_size,
                   uint32_t limit, uint16_t outgoing_slots, uint16_t incoming_slots, int huge)
{
    size_t slots = (size_t)outgoing_slots + incoming_slots;
    int advice = huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE, error;

    *frames = (struct pg_frames){.block_size = block_size,
                                 .limit = limit,
                                 .outgoing_slots = outgoing_slots,
                                 .incoming_slots = incoming_slots,
                                 .empty_outgoing = outgoing_slots,
                                 .empty_incoming = incoming_slots};
    frames->stack = calloc(2 * slots, sizeof *frames->stack);
    frames->outgoing = pg_map_aligned(staging_length(frames), 0);
    if (!frames->stack || !frames->outgoing) {
        error = errno ? -errno : -ENOMEM;
        pg_frames_free(frames);
        return error;
    }
    frames->incoming = frames->outgoing + round_up(outgoing_slots * block_size);
    madvise((void *)(uintptr_t)frames->outgoing, staging_length(frames), advice);
    error = pg_register(uffd->staging, frames->outgoing, round_up(outgoing_slots * block_size),
                        PM_REGISTER_MODE_MISSING);
    if (error) {
        pg_frames_free(frames);
        return error;
    }
    for (size_t i = 0; i < slots; i++)
        frames->stack[i] = (uint16_t)i;
    return 0;
}

void pg_frames_free(struct pg_frames *frames)
{
    if (frames->outgoing)
        munmap((void *)(uintptr_t)frames->outgoing, staging_length(frames));
    free(frames->stack);
    memset(frames, 0, sizeof *frames);
}

uint64_t pg_slot_address(const struct pg_frames *frames, uint16_t slot)
{
    if (slot < frames->outgoing_slots)
        return frames->outgoing + slot * frames->block_size;
    return frames->incoming + (uint64_t)(slot - frames->outgoing_slots) * frames->block_size;
}

int pg_is_fresh_slot(const struct pg_frames *frames, uint16_t slot)
{
    return slot >= frames->outgoing_slots;
}

/* The three stacks, one behind the other: outgoing, incoming, full. */
static uint16_t *incoming_stack(struct pg_frames *frames)
{
    return frames->stack + frames->outgoing_slots;
}

static uint16_t *full_stack(struct pg_frames *frames)
{
    return frames->stack + frames->outgoing_slots + frames->incoming_slots;
}

uint16_t pg_take_full(struct pg_frames *frames)
{
    return frames->full ? full_stack(frames)[--frames->full] : PG_NO_SLOT;
}

int pg_has_room(const struct pg_frames *frames)
{
    return frames->total < frames->limit;
}

uint16_t pg_take_fresh(struct pg_frames *frames)
{
    if (!pg_has_room(frames) || !frames->empty_incoming)
        return PG_NO_SLOT;
    frames->total++;
    return incoming_stack(frames)[--frames->empty_incoming];
}

uint16_t pg_take_outgoing(struct pg_frames *frames)
{
    return frames->empty_outgoing ? frames->stack[--frames->empty_outgoing] : PG_NO_SLOT;
}

void pg_give_full(struct pg_frames *frames, uint16_t slot)
{
    full_stack(frames)[frames->full++] = slot;
}

void pg_give_empty(struct pg_frames *frames, uint16_t slot)
{
    if (slot < frames->outgoing_slots)
        frames->stack[frames->empty_outgoing++] = slot;
    else
        incoming_stack(frames)[frames->empty_incoming++] = slot;
}

void pg_give_up(struct pg_frames *frames, uint16_t slot)
{
    madvise((void *)(uintptr_t)pg_slot_address(frames, slot), frames->block_size, MADV_DONTNEED);
    frames->total--;
    pg_give_empty(frames, slot);
}

#include "pager/state/frames.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/state/blocks.h"

int pg_frames_init(struct pg_frames *frames, uint64_t block_size, uint16_t outgoing_slots,
                   uint16_t incoming_slots)
{
    size_t slots = (size_t)outgoing_slots + incoming_slots;

    frames->stack = calloc(2 * slots, sizeof *frames->stack);
    if (!frames->stack)
        return -ENOMEM;
    frames->block_size = block_size;
    frames->outgoing_slots = frames->empty_outgoing = outgoing_slots;
    frames->incoming_slots = frames->empty_incoming = incoming_slots;
    for (size_t i = 0; i < slots; i++)
        frames->stack[i] = (uint16_t)i;
    return 0;
}

void pg_frames_free(struct pg_frames *frames)
{
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
    pg_count_frame(frames, 1);
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

void pg_note_given_up(struct pg_frames *frames, uint16_t slot)
{
    pg_count_frame(frames, -1);
    pg_give_empty(frames, slot);
}

#include "pager/state/frames.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/state/blocks.h"

static size_t words_of(size_t slots)
{
    return (slots + 63) / 64;
}

static void put(struct pg_slots *slots, uint16_t slot)
{
    uint16_t word = slot / 64;

    slots->words[word] |= UINT64_C(1) << slot % 64;
    slots->from = word < slots->from ? word : slots->from;
    slots->count++;
}

/* The first of them, so that those taken one after the other are beside each other if any are. */
static uint16_t take(struct pg_slots *slots)
{
    uint64_t *word = slots->words + slots->from;
    unsigned bit;

    if (!slots->count)
        return PG_NO_SLOT;
    while (!*word)
        word++;
    bit = (unsigned)__builtin_ctzll(*word);
    *word &= *word - 1;
    slots->from = (uint16_t)(word - slots->words);
    slots->count--;
    return (uint16_t)(64 * slots->from + bit);
}

int pg_frames_init(struct pg_frames *frames, uint64_t block_size, uint16_t outgoing_slots,
                   uint16_t incoming_slots)
{
    size_t outgoing = words_of(outgoing_slots), incoming = words_of(incoming_slots);
    size_t all = words_of((size_t)outgoing_slots + incoming_slots);

    frames->words = calloc(outgoing + incoming + all, sizeof *frames->words);
    if (!frames->words)
        return -ENOMEM;
    frames->block_size = block_size;
    frames->outgoing_slots = outgoing_slots;
    frames->incoming_slots = incoming_slots;
    frames->empty_outgoing = (struct pg_slots){.words = frames->words};
    frames->empty_incoming = (struct pg_slots){.words = frames->words + outgoing};
    frames->full = (struct pg_slots){.words = frames->words + outgoing + incoming};
    for (uint16_t i = 0; i < outgoing_slots; i++)
        put(&frames->empty_outgoing, i);
    for (uint16_t i = 0; i < incoming_slots; i++)
        put(&frames->empty_incoming, i);
    return 0;
}

void pg_frames_free(struct pg_frames *frames)
{
    free(frames->words);
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

uint16_t pg_take_full(struct pg_frames *frames)
{
    return take(&frames->full);
}

int pg_has_room(const struct pg_frames *frames)
{
    return frames->total < frames->limit;
}

uint16_t pg_take_fresh(struct pg_frames *frames)
{
    if (!pg_has_room(frames) || !frames->empty_incoming.count)
        return PG_NO_SLOT;
    pg_count_frame(frames, 1);
    return frames->outgoing_slots + take(&frames->empty_incoming);
}

uint16_t pg_take_outgoing(struct pg_frames *frames)
{
    return take(&frames->empty_outgoing);
}

void pg_give_full(struct pg_frames *frames, uint16_t slot)
{
    put(&frames->full, slot);
}

void pg_give_empty(struct pg_frames *frames, uint16_t slot)
{
    if (slot < frames->outgoing_slots)
        put(&frames->empty_outgoing, slot);
    else
        put(&frames->empty_incoming, slot - frames->outgoing_slots);
}

void pg_note_given_up(struct pg_frames *frames, uint16_t slot)
{
    pg_count_frame(frames, -1);
    pg_give_empty(frames, slot);
}

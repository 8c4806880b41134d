/* Frames: a block's worth of physical pages each, recycled under the limit.
 *
 * A frame is either mapped in the region or fills a slot of the staging area. There are two kinds
 * of slots: the outgoing ones, where a touch of an empty slot is an error (blocks leave into
 * these), and the incoming ones, which get fresh memory by being written to. */
#ifndef PAGEMOVE_PAGER_STATE_FRAMES_H
#define PAGEMOVE_PAGER_STATE_FRAMES_H

#include <stdint.h>

enum { PG_TIGHT = 32 /* below so many frames one instruction may need most of them */ };

/* A set of slots, of which the first leaves first. */
struct pg_slots {
    uint64_t *words; /* a bit each */
    uint16_t count;
    uint16_t from; /* no word before this has any */
};

struct pg_frames {
    uint64_t outgoing, incoming; /* addresses of slot 0 of each */
    uint64_t block_size;
    int limited;
    uint32_t limit, total; /* frames allowed, frames there are */
    uint32_t pinned;       /* of these, those of blocks that stay */
    uint16_t outgoing_slots, incoming_slots;
    uint64_t *words; /* of all sets */
    /* Those incoming counted from the first of their kind; full slots have no meaning. */
    struct pg_slots empty_outgoing, empty_incoming, full;
};

/* Slots, all of them empty; `limited`, `limit` and `pinned` stay as they are. 0 or -ENOMEM. */
int pg_frames_init(struct pg_frames *frames, uint64_t block_size, uint16_t outgoing_slots,
                   uint16_t incoming_slots);
void pg_frames_free(struct pg_frames *frames);

/* Count one more, or one less. Others than who has the region's lock may look at the total. */
static inline void pg_count_frame(struct pg_frames *frames, int change)
{
    __atomic_store_n(&frames->total, frames->total + (uint32_t)change, __ATOMIC_RELAXED);
}

/* Frames of blocks that come and go; UINT32_MAX: there is no limit. */
static inline uint32_t pg_frames_shared(const struct pg_frames *frames)
{
    return frames->limited ? frames->limit - frames->pinned : UINT32_MAX;
}

/* Whether there are so few frames that one instruction may need most of them. */
static inline int pg_is_tight(const struct pg_frames *frames)
{
    return pg_frames_shared(frames) < PG_TIGHT;
}

uint64_t pg_slot_address(const struct pg_frames *frames, uint16_t slot);

/* Whether a slot has to be written whole before it is there whole. */
int pg_is_fresh_slot(const struct pg_frames *frames, uint16_t slot);

/* A full slot that nobody needs; PG_NO_SLOT if there is none. */
uint16_t pg_take_full(struct pg_frames *frames);

/* An empty slot to fill with fresh memory, counted as a frame from now on; PG_NO_SLOT at the limit.
 */
uint16_t pg_take_fresh(struct pg_frames *frames);

/* An empty outgoing slot to move a block into. */
uint16_t pg_take_outgoing(struct pg_frames *frames);

/* Whether another frame is allowed. */
int pg_has_room(const struct pg_frames *frames);

/* Give slots back: full with a frame to be recycled, empty because the frame has moved, or emptied,
 * so that there is a frame less (staging.c does that). */
void pg_give_full(struct pg_frames *frames, uint16_t slot);
void pg_give_empty(struct pg_frames *frames, uint16_t slot);
void pg_note_given_up(struct pg_frames *frames, uint16_t slot);

#endif

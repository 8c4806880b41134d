/* Frames: a block's worth of physical pages each, recycled under the limit.
 *
 * A frame is either mapped in the region or fills a slot of the staging area. There are two kinds
 * of slots: the outgoing ones, where a touch of an empty slot is an error (blocks leave into
 * these), and the incoming ones, which get fresh memory by being written to. */
#ifndef PAGEMOVE_PAGER_STATE_FRAMES_H
#define PAGEMOVE_PAGER_STATE_FRAMES_H

#include <stdint.h>

#include "pager/mechanisms/uffd.h"

#define PG_HUGE_SIZE (UINT64_C(2) << 20)

struct pg_frames {
    uint64_t outgoing, incoming; /* addresses of slot 0 of each */
    uint64_t block_size;
    uint32_t limit, total; /* frames allowed, frames there are */
    uint16_t outgoing_slots, incoming_slots;
    uint16_t *stack; /* empty outgoing slots, empty incoming slots, full slots without a meaning */
    uint16_t empty_outgoing, empty_incoming, full;
};

/* Map private anonymous memory at a multiple of 2 MiB that a fork does not inherit, and that is in
 * core dumps only if it is to be. 0: errno says why not. */
uint64_t pg_map_aligned(uint64_t length, int dumped);

int pg_frames_init(struct pg_frames *frames, const struct pg_uffd *uffd, uint64_t block_size,
                   uint32_t limit, uint16_t outgoing_slots, uint16_t incoming_slots, int huge);
void pg_frames_free(struct pg_frames *frames);

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

/* Give slots back: full with a frame to be recycled, empty because the frame has moved, or to be
 * emptied, frame and all. */
void pg_give_full(struct pg_frames *frames, uint16_t slot);
void pg_give_empty(struct pg_frames *frames, uint16_t slot);
void pg_give_up(struct pg_frames *frames, uint16_t slot);

/* See that no slot is merged with other memory (merging.c). */
void pg_frames_unmerge(const struct pg_frames *frames);

#endif

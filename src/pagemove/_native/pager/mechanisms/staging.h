/* The memory of frames that are not in a region: where blocks are read to, and leave to. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_STAGING_H
#define PAGEMOVE_PAGER_MECHANISMS_STAGING_H

#include <stdint.h>

#include "pager/mechanisms/uffd.h"
#include "pager/state/frames.h"

#define PG_HUGE_SIZE (UINT64_C(2) << 20)

/* Map private anonymous memory at a multiple of 2 MiB that a fork does not inherit, and that is in
 * core dumps only if it is to be. 0: errno says why not. */
uint64_t pg_map_aligned(uint64_t length, int dumped);

/* Slots and the memory for them. 0 or -errno. */
int pg_staging_init(struct pg_frames *frames, const struct pg_uffd *uffd, uint64_t block_size,
                    uint16_t outgoing_slots, uint16_t incoming_slots, int huge);
void pg_staging_free(struct pg_frames *frames);

/* Empty a slot and give it back; and a slot whose frame counts: there is one less. */
void pg_empty_slot(struct pg_frames *frames, uint16_t slot);
void pg_give_up(struct pg_frames *frames, uint16_t slot);

/* See that no slot is merged with other memory (merging.c). */
void pg_staging_unmerge(const struct pg_frames *frames);

#endif

/* How blocks come into a region: read for a thread that waits, or ahead of it. What region.h says
 * of locks holds. */
#ifndef PAGEMOVE_PAGER_ENGINE_ARRIVING_H
#define PAGEMOVE_PAGER_ENGINE_ARRIVING_H

#include "pager/engine/region.h"

/* slots.c */

/* A slot to read a block into, at the expense of others if need be. PG_NO_SLOT: not now. Drops the
 * lock.
 */
uint16_t pg_slot_for_block(struct pg_region *region);

/* An empty outgoing slot to move a block into; PG_NO_SLOT: not now. */
uint16_t pg_slot_to_move_into(struct pg_region *region);

/* Give back a slot that was taken for a block; `whole` if it is known to be full. */
void pg_slot_back(struct pg_region *region, uint16_t slot, int whole);

/* Give one frame up, that of a block if need be. 0 or -PG_NOT_NOW. Drops the lock. */
int pg_empty_one(struct pg_region *region, int write);

/* Make room for one more frame, with `write` by writing if need be. 0 or -PG_NOT_NOW.
 * Drops the lock. */
int pg_make_room(struct pg_region *region, int write);

/* The same, where frames are few without taking one from a block: with none to be had, whoever
 * waits holds what others wait for. */
int pg_make_room_gently(struct pg_region *region);

/* fill.c */

/* Below this, copying a new block out of a warm slot is cheaper than having the kernel fault in
 * fresh memory for the read, and moving that. */
enum { PG_MOVE_FRESH_FROM = 16384 };

/* Read blocks that follow each other; the lock is not held. */
int pg_read_blocks(struct pg_region *region, uint32_t first, const uint16_t *slots, size_t count,
                   int nowait);

/* Put a FILLING block that has been read into the region. 0 or -errno: then the slot is still the
 * caller's, and has the block, or what the region has not of one that is dirty now; or it was given
 * up, and is PG_NO_SLOT: the block is to be read again. With `unshown`, which is
 * set then, the caller calls pg_show for what was moved to a read-only region, before it drops the
 * lock. Drops the lock. */
int pg_install(struct pg_region *region, pg_entry entry, uint16_t *slot, int *unshown);

/* Whether a FILLING block that is clean, and of which nothing is there, comes by a move. */
int pg_is_to_move(const struct pg_region *region, pg_entry entry);

/* All of a FILLING block is in the region. */
void pg_installed(struct pg_region *region, pg_entry entry);

/* Fill a FILLING block for a thread that waits: now if the store need not wait for a device, else
 * by a worker. Drops the lock. */
void pg_fill(struct pg_region *region, pg_entry entry, uint64_t began);

/* Do a job, or put it off. Drops the lock. */
void pg_do_job(struct pg_region *region, struct pg_job job);

/* answers.c */

/* Have the helper put a block into the region: that is one switch between processes less on the way
 * to the thread that waits. One at a time; others go by way of the workers. 0, or -PG_NOT_NOW.
 * Drops the lock. */
int pg_ask_helper(struct pg_region *region, struct pg_job job);

/* The answer to that, or that there is none. Drops the lock. */
void pg_take_answer(struct pg_region *region);

/* Take the answer if the block is in the region. `wakes`: this thread has the descriptors to wake
 * who waits for it, should that be left to do. Drops the lock. */
void pg_look_for_answer(struct pg_region *region, int wakes);

/* Have the answer be heard from now on, not looked for. Drops the lock. */
void pg_listen(struct pg_region *region);

/* together.c */

/* Have slots be in the order of their addresses, so that blocks in them can move together. */
void pg_sort_slots(uint16_t *slots, size_t count);

/* Put FILLING blocks that have been read, and follow each other, into the region by one move, as
 * far as they can be. How many of the first are there, with their slots given back; with `unshown`
 * as in pg_install. */
size_t pg_install_together(struct pg_region *region, const pg_entry *entries, const uint16_t *slots,
                           size_t count, int *unshown);

/* flights.c */

/* How many there may be; those of an engine, or with NULL its own. 0 or -ENOMEM. */
struct pg_flights;
int pg_flights_start(struct pg_region *region, struct pg_flights *shared);

/* Whether a block is to be had by pg_take_off, without looking for it in the page cache. */
int pg_is_cold(const struct pg_region *region);

/* Have a FILLING block read into its slot, without waiting. -PG_NOT_NOW: by a worker. Drops the
 * lock. */
int pg_take_off(struct pg_region *region, struct pg_job job, int fresh);

/* ahead.c */

/* Learn from a touch of a block that was not mapped. Whether it belongs to a long sequence. */
int pg_note_touch(struct pg_region *region, uint32_t number);

/* Read blocks, and wait for them, up to the first that cannot be had. 0, or its error. Needs no
 * lock. */
int pg_read_range(struct pg_region *region, uint64_t first, uint64_t end);

/* Read a part of the first request. Drops the lock. */
void pg_read_ahead(struct pg_region *region);

/* Read the beginning of a request of the caller's own, as one read. Returns how many blocks that
 * were; 0 without a frame for them, and the request has ended. Drops the lock. */
uint32_t pg_read_part(struct pg_region *region, struct pg_request *request, int *error);

/* Queue a request. -PG_NOT_NOW: there are too many. */
int pg_put_request(struct pg_region *region, struct pg_request request);

/* A worker ends: unless another one is still reading, which will do this, nobody reads the rest. */
void pg_drop_requests(struct pg_region *region);

/* prefetch.c */

/* Read a block that could not be read ahead, with all patience, and wait for it. 0, or -EIO: it
 * cannot be read. Drops the lock. */
int pg_insist(struct pg_region *region, uint32_t number);

/* Blocks that can be read at once: more would only push out the first of them. */
uint64_t pg_most_at_once(struct pg_region *region);

int pg_do_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait);

#endif

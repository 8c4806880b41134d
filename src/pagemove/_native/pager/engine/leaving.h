/* How blocks leave a region, and what was changed is written. What region.h says of locks holds. */
#ifndef PAGEMOVE_PAGER_ENGINE_LEAVING_H
#define PAGEMOVE_PAGER_ENGINE_LEAVING_H

#include "pager/engine/region.h"

/* A block that has been moved out, and which pages of it there were. */
struct pg_out {
    pg_entry entry;
    uint32_t number;
    uint16_t slot;
    int whole, error;
    uint64_t begun; /* bytes that are in the slot already, of the first pages */
    int offered;    /* it may stay in place, if it does not shrink */
    int stays;      /* it does; `again`: as before */
    int again;
    struct pg_pages pages;
};

/* evict.c */

/* The slot of a block that is not needed any more; dirty ones only with `write`, for that may wait
 * for a device, or for a thread that waits for a block. PG_NO_SLOT: every block is needed. Drops
 * the lock.
 */
uint16_t pg_reclaim(struct pg_region *region, int write);

/* How many blocks leave, or are written, at once: not so many that others lack their frames. */
unsigned pg_batch(const struct pg_region *region);

/* Write some dirty blocks back, so that their frames can be used. Returns how many have left. Drops
 * the lock. */
unsigned pg_write_out(struct pg_region *region);

/* Write a resident dirty block back without copying it, which takes no frame. 0 or what went wrong:
 * -PG_NOT_NOW, there is no slot. Drops the lock. */
int pg_write_itself(struct pg_region *region, pg_entry entry);

/* Move a resident block out, which is STAGED then. 0, or -errno: it is resident as before. */
int pg_take_out(struct pg_region *region, pg_entry entry, struct pg_out *out);

/* One that was moved out is to be written; `offer`: unless it does not shrink, and may stay. */
void pg_begin_writing(struct pg_region *region, struct pg_out *out, int offer);

/* Forget a block whose frame is in a slot, or given up. */
void pg_forget_evicted(struct pg_region *region, pg_entry entry);

/* A block's contents are not in memory any more. */
void pg_note_dropped(struct pg_region *region, pg_entry entry);

/* Let an STAGED block that is clean go, or stand by. */
void pg_settle(struct pg_region *region, const struct pg_out *out);

/* Take blocks of a range away, changed ones after writing them back. 0 or -errno. Drops the lock.
 */
int pg_do_evict(struct pg_region *region, uint64_t offset, uint64_t length);

/* Whether all pages of a block are there. */
static inline int pg_is_whole(const struct pg_region *region, const struct pg_pages *pages)
{
    for (unsigned page = 0; page < region->block_size / region->uffd.page_size; page++)
        if (!pg_has(pages, page))
            return 0;
    return 1;
}

/* together.c */

/* Move blocks out that have slots, and follow each other, by one move, as far as they can be: what
 * has moved of each is `begun`. They may get each other's slots. */
void pg_move_together(struct pg_region *region, struct pg_out *outs, size_t count);

/* Move the rest of a block that leaves. 0 or -errno: then a part of it may have moved. */
int pg_move_rest(struct pg_region *region, struct pg_out *out);

/* Let go of neighbours that are clean and of a sequence, with their frames. How many; 0: others are
 * to leave first, or these cannot. */
unsigned pg_drop_unmoved(struct pg_region *region);

/* inplace.c */

/* Blocks have been written that were offered, or have been in place: those that are to stay are in
 * place from here on, or have an error. */
void pg_settle_offers(struct pg_region *region, struct pg_out *outs, size_t count);

/* A block that was in place is in the store: it leaves memory, and takes no frame of the limit with
 * it. */
void pg_leave_place(struct pg_region *region, const struct pg_out *out);

/* The memory of a block in place is about to be given up: nothing counts it any more. */
void pg_forget_place(struct pg_region *region, pg_entry entry);

/* So many blocks have left, as far as they could: now and then one in place is tried again. */
void pg_note_left(struct pg_region *region, unsigned left);

/* So many of them are to be tried again at least. */
void pg_want_tries(struct pg_region *region, uint32_t count);

/* Try some of those. Drops the lock. */
void pg_try_again(struct pg_region *region);

/* The store is full: see whether any of them shrinks by now. Drops the lock. */
void pg_make_store_room(struct pg_region *region);

/* shift.c */

/* Have blocks become others, which are absent and zeros: how many, from the first on. Of a region
 * that was opened blank. Drops the lock. */
uint32_t pg_shift_blocks(struct pg_region *region, uint32_t to, uint32_t from, uint32_t count);

/* writeback.c */

/* Open the file of private changes. 0, or -errno; then `text` says what to do. */
int pg_open_spill(struct pg_region *region, char text[PG_TEXT]);

/* Write blocks to where changes go. Fills in `error` of each. The lock is not held. */
void pg_write_back(struct pg_region *region, struct pg_out *outs, size_t count);

/* Keep count of batches under way, and of how the store takes them. */
unsigned pg_begin_write(struct pg_region *region);
void pg_end_write(struct pg_region *region, unsigned epoch, const struct pg_out *outs,
                  size_t count);

/* Write WRITING blocks back; then they are on standby, or resident and still dirty.
 * Drops the lock. */
void pg_write_evicted(struct pg_region *region, struct pg_out *outs, size_t count);

/* Bring a block back that could not leave: resident, or, if memory for that is missing, FILLING
 * from its slot until there is some. In a writable region it is dirty. */
void pg_put_back(struct pg_region *region, const struct pg_out *out);

/* Map a copy of a WRITING block, whose frame is being written. 0 or -PG_NOT_NOW: no room. */
int pg_copy_written(struct pg_region *region, pg_entry entry);

/* Whether changed blocks may be tried to be written now. */
int pg_may_write(const struct pg_region *region);

/* Whether the block's contents are in the spill file. */
int pg_is_spilled(const struct pg_region *region, uint32_t number);

/* discard.c */

/* Whether an absent block is zeros that no store has. */
int pg_is_blank(const struct pg_region *region, uint32_t number);

/* Whether something may be in it, if there is an arena. */
int pg_is_owned(const struct pg_region *region, uint32_t number);

/* Fill slots with zeros, as a read would. */
void pg_blank_slots(const struct pg_region *region, const uint16_t *slots, size_t count);

/* The bits of `spilled`. */
int pg_is_noted(const struct pg_region *region, uint32_t number);
void pg_note_stored(struct pg_region *region, uint32_t number);
void pg_note_forgotten(struct pg_region *region, uint32_t number);

/* merging.c */

/* Whether the process wants all its memory to be merged with like memory. */
int pg_is_merging(void);

/* See whether it has come to want that, and that ours is not. Before blocks that are not marked
 * dirty are taken for clean. */
void pg_look_at_merging(struct pg_region *region);

/* Part what was merged. */
void pg_unmerge(struct pg_region *region);

/* Whether all pages of a block are write-protected that are there. */
int pg_is_protected(const struct pg_region *region, uint32_t number);

/* flush.c */

/* Write dirty blocks from entry `first` to `end`, `most` of them, and leave out those that others
 * hold; for one that has the lock for flushes. */
struct pg_written {
    pg_entry next;    /* so far it has come */
    unsigned written; /* blocks */
    int missed;       /* some could not be written now */
    uint32_t failed;  /* the last of those */
};
struct pg_written pg_write_some(struct pg_region *region, pg_entry first, pg_entry end,
                                unsigned most);

/* Write what is dirty and have the store make it durable; of a region with private changes only
 * wait for writes that have begun. 0 or -errno. */
int pg_do_flush(struct pg_region *region);

/* Until nobody else flushes. 0, or -PG_INTERRUPTED. Drops the lock. */
int pg_begin_flush(struct pg_region *region);
void pg_end_flush(struct pg_region *region);

/* Have the store make durable what was written, for one that has the lock for flushes. 0 or -errno;
 * then `sync_lost` says whether it can still be written again. Drops the lock. */
int pg_sync_all(struct pg_region *region);

/* background.c */

/* The thread that writes back what has been changed for a while. */
void *pg_write_in_background(void *region);

/* A batch of it. Returns when to go on. Needs no lock. */
uint64_t pg_sweep(struct pg_region *region);

/* Have whole blocks of a region that was opened blank be zeros; `stored`: the store still has
 * something of them. 0 or -errno. Needs no lock. */
int pg_drop_blocks(struct pg_region *region, uint64_t offset, uint64_t length, int *stored);

/* Have the store keep nothing of blocks that are not in memory. */
int pg_do_forget(struct pg_region *region, uint64_t offset, uint64_t length);

#endif

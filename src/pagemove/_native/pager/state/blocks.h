/* The state of each block: which blocks are not absent, what they are, and in which order they are
 * to leave. All of it belongs to whoever holds the region's lock. */
#ifndef PAGEMOVE_PAGER_STATE_BLOCKS_H
#define PAGEMOVE_PAGER_STATE_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

enum pg_state {
    PG_ABSENT = 0, /* has no entry */
    PG_FILLING,    /* being read from the store */
    PG_RESIDENT,   /* mapped in the region */
    PG_STAGED,     /* not mapped, still in a slot: moves back when touched, leaves when needed */
    PG_WRITING,    /* not mapped, in a slot, changed, on its way to the store */
    PG_ERROR,      /* cannot be read: poisoned */
};

enum pg_flag {
    PG_DIRTY = 1,  /* differs, or may, from the store; otherwise it cannot be written unseen */
    PG_WANTED = 2, /* a thread waits for it */
    PG_WRITE_WANTED = 4,   /* that thread wants to write */
    PG_COPY_IN_FLIGHT = 8, /* a copy of it is being written back */
    PG_SEQUENCE = 16,      /* belongs to a long sequence of touches, or was read ahead of one */
    PG_PARTIAL = 32,       /* resident, but for pages that the user has discarded and now touches */
    PG_STARVED = 128,      /* poisoned only because there was no frame */
    PG_UNSYNCED = 64,      /* written back by a flush that has yet to make it durable */
};

enum pg_list {
    PG_UNLISTED = 0,
    PG_ONCE,
    PG_HOT,
    PG_RECENT,
    PG_SCAN,
    PG_STANDBY,
    PG_IN_PLACE, /* of all in place, those that may be tried again; the next one is the first */
    PG_STUCK,    /* the kernel has refused to move them: pinned, or locked (mlock) */
    PG_LISTS
};

#define PG_NONE UINT32_MAX
#define PG_NO_SLOT UINT16_MAX

/* An index of a block in the arrays below; stable as long as the block is not absent. */
typedef uint32_t pg_entry;

struct pg_block {
    uint32_t number;
    uint16_t slot;
    uint8_t state : 3, list : 3;
    uint8_t hot : 1;      /* was needed again soon after it had left, or would have */
    uint8_t in_place : 1; /* the store keeps it where it is, and counts its frame (inplace.c) */
    uint8_t flags;
};
_Static_assert(sizeof(struct pg_block) == 8, "8 bytes a block");

/* Whether some thread owns the block's state now, so that any other has to wait. */
static inline int pg_is_busy(const struct pg_block *block)
{
    return block->state == PG_FILLING || block->state == PG_WRITING ||
           block->flags & PG_COPY_IN_FLIGHT;
}

/* Whether it has changes that no store has. One in place is where the store keeps it. */
static inline int pg_is_to_be_written(const struct pg_block *block)
{
    return block->flags & PG_DIRTY && !block->in_place;
}

/* Whether its changes are somebody else's for now. One that is being filled in, where the user has
 * discarded a page, is dirty as well. And of one whose older contents are being written no newer
 * ones may be written at the same time: who comes last is not known. */
static inline int pg_is_held(const struct pg_block *block)
{
    return (block->state == PG_FILLING && block->flags & PG_DIRTY) ||
           (block->state != PG_ABSENT && block->flags & PG_COPY_IN_FLIGHT);
}

struct pg_link {
    pg_entry prev, next;
};

struct pg_blocks {
    struct pg_block *at; /* entries; address space for all, memory for those in use */
    struct pg_link *link;
    pg_entry *table; /* open addressing, linear probing: entry by block number */
    uint64_t capacity, table_size;
    pg_entry used; /* entries ever in use; free ones are chained by `number` */
    pg_entry free;
    uint32_t count, in_place;
    uint32_t dirty; /* but for those in place, which have been stored */
    pg_entry head[PG_LISTS], tail[PG_LISTS];
    uint32_t length[PG_LISTS];
};

int pg_blocks_init(struct pg_blocks *blocks, uint64_t capacity);
void pg_blocks_free(struct pg_blocks *blocks);
uint64_t pg_blocks_bytes(const struct pg_blocks *blocks);

/* The entry of a block, PG_NONE if it is absent. */
pg_entry pg_find(const struct pg_blocks *blocks, uint32_t number);

/* Give an absent block an entry, which is FILLING. PG_NONE: no memory. */
pg_entry pg_begin(struct pg_blocks *blocks, uint32_t number);

/* Have the entry be that of another block, which is absent. */
void pg_renumber(struct pg_blocks *blocks, pg_entry entry, uint32_t number);

/* Says why the process ends; set by who can speak (voice.c). */
extern void (*pg_last_words)(const char *line);

/* The one place where a state changes; a transition that makes no sense ends the process, for a
 * pager that has lost track would lose data. To PG_ABSENT frees the entry. */
void pg_become(struct pg_blocks *blocks, pg_entry entry, enum pg_state state);

/* Somebody is about to fill a block: ends the process, as above, unless the entry is its, and
 * FILLING. */
void pg_expect_filling(const struct pg_blocks *blocks, pg_entry entry, uint32_t number);

void pg_set_dirty(struct pg_blocks *blocks, pg_entry entry, int dirty);

/* Such a block is in no list but PG_IN_PLACE, and no other is in that; it is not absent, nor does
 * it stand by or raise SIGBUS before the store counts it no more. */
void pg_set_in_place(struct pg_blocks *blocks, pg_entry entry, int in_place);

/* Lists: an entry is in one at most. */
void pg_push_tail(struct pg_blocks *blocks, enum pg_list list, pg_entry entry);
void pg_unlist(struct pg_blocks *blocks, pg_entry entry);

#endif

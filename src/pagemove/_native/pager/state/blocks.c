#include "pager/state/blocks.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pager/state/room.h"

/* A table starts with this many places and grows by a third when three quarters are taken: between
 * 5.3 and 7.1 bytes a block, besides 8 for its entry. */
enum { SMALLEST_TABLE = 1024 };

void (*pg_last_words)(const char *line);

static uint64_t place_of(uint32_t number, uint64_t size)
{
    /* Fibonacci hashing, then scaled to a size that need not be a power of two. */
    uint64_t hash = number * UINT64_C(0x9E3779B97F4A7C15) >> 32;

    return hash * size >> 32;
}

static pg_entry *new_table(uint64_t size)
{
    pg_entry *table = pg_room(size * sizeof *table);

    if (table)
        memset(table, 0xff, size * sizeof *table);
    return table;
}

int pg_blocks_init(struct pg_blocks *blocks, uint64_t capacity)
{
    memset(blocks, 0, sizeof *blocks);
    blocks->capacity = capacity;
    blocks->free = PG_NONE;
    for (int i = 0; i < PG_LISTS; i++)
        blocks->head[i] = blocks->tail[i] = PG_NONE;
    blocks->table_size = SMALLEST_TABLE;
    blocks->at = pg_room(capacity * sizeof *blocks->at);
    blocks->link = pg_room(capacity * sizeof *blocks->link);
    blocks->table = new_table(blocks->table_size);
    if (blocks->at && blocks->link && blocks->table)
        return 0;
    pg_blocks_free(blocks);
    return -ENOMEM;
}

void pg_blocks_free(struct pg_blocks *blocks)
{
    pg_room_free(blocks->at, blocks->capacity * sizeof *blocks->at);
    pg_room_free(blocks->link, blocks->capacity * sizeof *blocks->link);
    pg_room_free(blocks->table, blocks->table_size * sizeof *blocks->table);
    memset(blocks, 0, sizeof *blocks);
}

uint64_t pg_blocks_bytes(const struct pg_blocks *blocks)
{
    uint64_t linked = 0;

    for (int i = 1; i < PG_LISTS; i++)
        linked += blocks->length[i];
    return blocks->used * sizeof *blocks->at + linked * sizeof *blocks->link +
           blocks->table_size * sizeof *blocks->table;
}

static uint64_t seek(const struct pg_blocks *blocks, uint32_t number)
{
    uint64_t place = place_of(number, blocks->table_size);

    while (blocks->table[place] != PG_NONE && blocks->at[blocks->table[place]].number != number)
        place = place + 1 == blocks->table_size ? 0 : place + 1;
    return place;
}

pg_entry pg_find(const struct pg_blocks *blocks, uint32_t number)
{
    return blocks->table[seek(blocks, number)];
}

static int grow(struct pg_blocks *blocks)
{
    struct pg_blocks larger = *blocks;

    larger.table_size += larger.table_size / 3;
    larger.table = new_table(larger.table_size);
    if (!larger.table)
        return -ENOMEM;
    for (uint64_t i = 0; i < blocks->table_size; i++) {
        pg_entry entry = blocks->table[i];
        if (entry != PG_NONE)
            larger.table[seek(&larger, blocks->at[entry].number)] = entry;
    }
    pg_room_free(blocks->table, blocks->table_size * sizeof *blocks->table);
    *blocks = larger;
    return 0;
}

pg_entry pg_begin(struct pg_blocks *blocks, uint32_t number)
{
    pg_entry entry = blocks->free;

    if (blocks->count >= blocks->table_size / 4 * 3 && grow(blocks))
        return PG_NONE;
    if (entry != PG_NONE)
        blocks->free = blocks->at[entry].number;
    else if (blocks->used < blocks->capacity)
        entry = blocks->used++;
    else
        return PG_NONE;
    blocks->table[seek(blocks, number)] = entry;
    blocks->at[entry] =
        (struct pg_block){.number = number, .slot = PG_NO_SLOT, .state = PG_FILLING};
    blocks->count++;
    return entry;
}

/* Close the gap that a removed entry leaves in its chain of probes. */
static void remove_from_table(struct pg_blocks *blocks, uint32_t number)
{
    uint64_t size = blocks->table_size, gap = seek(blocks, number), at = gap, home;

    for (;;) {
        at = at + 1 == size ? 0 : at + 1;
        if (blocks->table[at] == PG_NONE)
            break;
        home = place_of(blocks->at[blocks->table[at]].number, size);
        /* It may fill the gap unless its home lies cyclically behind the gap. */
        if (gap <= at ? gap < home && home <= at : gap < home || home <= at)
            continue;
        blocks->table[gap] = blocks->table[at];
        gap = at;
    }
    blocks->table[gap] = PG_NONE;
}

static void release(struct pg_blocks *blocks, pg_entry entry)
{
    pg_unlist(blocks, entry);
    pg_set_dirty(blocks, entry, 0);
    remove_from_table(blocks, blocks->at[entry].number);
    blocks->at[entry].number = blocks->free;
    blocks->free = entry;
    blocks->count--;
}

void pg_renumber(struct pg_blocks *blocks, pg_entry entry, uint32_t number)
{
    remove_from_table(blocks, blocks->at[entry].number);
    blocks->at[entry].number = number;
    blocks->table[seek(blocks, number)] = entry;
}

/* The process ends, for it would lose data. */
__attribute__((format(printf, 1, 2), noreturn)) static void lost_track(const char *format, ...)
{
    char line[128];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (pg_last_words)
        pg_last_words(line);
    abort();
}

void pg_become(struct pg_blocks *blocks, pg_entry entry, enum pg_state state)
{
#define FROM(s) (1u << (s))
    static const unsigned allowed[] = {
        [PG_ABSENT] = FROM(PG_FILLING) | FROM(PG_RESIDENT) | FROM(PG_STAGED) | FROM(PG_ERROR),
        [PG_FILLING] = FROM(PG_RESIDENT) | FROM(PG_STAGED) | FROM(PG_ERROR),
        [PG_RESIDENT] = FROM(PG_FILLING) | FROM(PG_STAGED) | FROM(PG_WRITING),
        [PG_STAGED] = FROM(PG_FILLING) | FROM(PG_RESIDENT) | FROM(PG_WRITING),
        [PG_WRITING] = FROM(PG_STAGED),
        [PG_ERROR] = FROM(PG_FILLING),
    };
#undef FROM
    struct pg_block *block = &blocks->at[entry];

    if (!(allowed[state] & 1u << block->state) ||
        (block->in_place && (state == PG_ABSENT || state == PG_ERROR)))
        lost_track("pagemove: block %u cannot go from state %d to %d\n", block->number,
                   block->state, state);
    block->state = (unsigned char)(state & 7);
    if (state == PG_ABSENT)
        release(blocks, entry);
}

void pg_expect_filling(const struct pg_blocks *blocks, pg_entry entry, uint32_t number)
{
    const struct pg_block *block = &blocks->at[entry];

    if (block->number == number && block->state == PG_FILLING)
        return;
    lost_track("pagemove: block %u is to be filled, and found to be %u in state %d\n", number,
               block->number, block->state);
}

void pg_set_dirty(struct pg_blocks *blocks, pg_entry entry, int dirty)
{
    struct pg_block *block = &blocks->at[entry];

    if (dirty && !(block->flags & PG_DIRTY) && !block->in_place)
        blocks->dirty++;
    if (!dirty && block->flags & PG_DIRTY && !block->in_place)
        blocks->dirty--;
    block->flags = (uint8_t)(dirty ? block->flags | PG_DIRTY : block->flags & ~PG_DIRTY);
}

void pg_set_in_place(struct pg_blocks *blocks, pg_entry entry, int in_place)
{
    struct pg_block *block = &blocks->at[entry];
    uint32_t dirty = (block->flags & PG_DIRTY) != 0;

    if (block->in_place == in_place)
        return;
    pg_unlist(blocks, entry);
    block->in_place = in_place & 1;
    blocks->in_place += in_place ? 1 : UINT32_MAX;
    blocks->dirty += in_place ? -dirty : dirty;
}

void pg_push_tail(struct pg_blocks *blocks, enum pg_list list, pg_entry entry)
{
    pg_entry prev;

    if (blocks->at[entry].in_place != (list == PG_IN_PLACE))
        lost_track("pagemove: block %u cannot be in list %d\n", blocks->at[entry].number, list);
    pg_unlist(blocks, entry);
    prev = blocks->tail[list];
    blocks->link[entry] = (struct pg_link){prev, PG_NONE};
    *(prev == PG_NONE ? &blocks->head[list] : &blocks->link[prev].next) = entry;
    blocks->tail[list] = entry;
    blocks->at[entry].list = (unsigned char)(list & 7);
    blocks->length[list]++;
}

void pg_unlist(struct pg_blocks *blocks, pg_entry entry)
{
    enum pg_list list = blocks->at[entry].list;
    struct pg_link link;

    if (list == PG_UNLISTED)
        return;
    link = blocks->link[entry];
    *(link.prev == PG_NONE ? &blocks->head[list] : &blocks->link[link.prev].next) = link.next;
    *(link.next == PG_NONE ? &blocks->tail[list] : &blocks->link[link.next].prev) = link.prev;
    blocks->at[entry].list = PG_UNLISTED;
    blocks->length[list]--;
}

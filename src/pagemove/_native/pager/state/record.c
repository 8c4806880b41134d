#include "pager/state/record.h"

#include <errno.h>
#include <stdlib.h>

#include "pager/state/room.h"

static uint64_t bytes_of(uint32_t blocks)
{
    return (blocks / 64 + 1) * sizeof(uint64_t);
}

int pg_record_start(struct pg_record *record, uint32_t blocks)
{
    if (!record->seen) {
        record->seen = pg_room(bytes_of(blocks));
        record->blocks = blocks;
    }
    return record->seen ? 0 : -ENOMEM;
}

void pg_record_needed(struct pg_record *record, uint32_t number)
{
    uint64_t bit = UINT64_C(1) << number % 64;

    if (!record->seen || record->seen[number / 64] & bit)
        return;
    if (record->count == record->room) {
        uint32_t room = record->room ? 2 * record->room : 1024;
        uint32_t *larger = realloc(record->numbers, room * sizeof *larger);
        if (!larger)
            return; /* a hint that is missing costs time, nothing else */
        record->numbers = larger;
        record->room = room;
    }
    record->seen[number / 64] |= bit;
    record->numbers[record->count++] = number;
}

void pg_record_free(struct pg_record *record)
{
    pg_room_free(record->seen, bytes_of(record->blocks));
    free(record->numbers);
}

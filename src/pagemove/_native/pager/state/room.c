#define _GNU_SOURCE
#include "pager/state/room.h"

#include <stddef.h>
#include <sys/mman.h>

void *pg_room(uint64_t bytes)
{
    void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (room == MAP_FAILED)
        return NULL;
    /* A huge page for a few entries would be no saving. */
    madvise(room, bytes, MADV_NOHUGEPAGE);
    return room;
}

void pg_room_free(void *room, uint64_t bytes)
{
    if (room)
        munmap(room, bytes);
}

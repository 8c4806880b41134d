/* Room for tables of which most may never be used: memory comes with the first touch. */
#ifndef PAGEMOVE_PAGER_STATE_ROOM_H
#define PAGEMOVE_PAGER_STATE_ROOM_H

#include <stdint.h>

/* NULL: no memory. It is all zeros. */
void *pg_room(uint64_t bytes);
void pg_room_free(void *room, uint64_t bytes);

#endif

/* Memory that the program moves pages in: a forked child does not have it. */
#ifndef PAGEMOVE_PAGER_MEMORIES_H
#define PAGEMOVE_PAGER_MEMORIES_H

#include <stdint.h>

struct pg_memory;

/* Have the addresses reserved in each child, where a touch is SIGSEGV after a message. What is
 * there is mapped with MADV_DONTFORK. NULL: no memory. */
struct pg_memory *pg_enter_memory(uint64_t base, uint64_t length);

/* Unmap it, in the process that has entered it. */
void pg_leave_memory(struct pg_memory *memory);

/* forks.c, in the child. */
void pg_memories_forked(void);

#endif

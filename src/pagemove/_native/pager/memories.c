#include "pager/memories.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "pager/inherited.h"
#include "pager/life.h"

struct pg_memory {
    uint64_t base, length;
    struct pg_stone *stone;
    struct pg_memory *next, **link;
};

/* With the lock of all regions, which a fork has. */
static struct pg_memory *memories;

static const char said[] =
    "pagemove: a Memory, or an array of pagemove.empty, of the parent process is not there in the "
    "forked process: it raises SIGSEGV on access; make a new one here, or be passed a copy of what "
    "is needed; or start workers by spawn or forkserver\n";

struct pg_memory *pg_enter_memory(uint64_t base, uint64_t length)
{
    struct pg_memory *memory = calloc(1, sizeof *memory);

    if (memory)
        memory->stone = pg_new_stone_saying(said);
    if (!memory || !memory->stone) {
        free(memory);
        return NULL;
    }
    memory->base = base;
    memory->length = length;
    pg_hold_forks();
    memory->next = memories;
    memory->link = &memories;
    if (memories)
        memories->link = &memory->next;
    memories = memory;
    pg_release_forks();
    return memory;
}

void pg_leave_memory(struct pg_memory *memory)
{
    /* A child that was forked in between would reserve what it has of another mapping. */
    pg_hold_forks();
    munmap((void *)(uintptr_t)memory->base, memory->length);
    *memory->link = memory->next;
    if (memory->next)
        memory->next->link = memory->link;
    pg_release_forks();
    pg_free_stone(memory->stone);
    free(memory);
}

/* They are the parent's: nothing of them is freed here, and nobody leaves one. */
void pg_memories_forked(void)
{
    for (struct pg_memory *memory = memories; memory; memory = memory->next)
        pg_mark_memory(memory->stone, memory->base, memory->length);
    memories = NULL;
}

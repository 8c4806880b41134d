/* What the pager calls of the rest of the core, for programs that have the pager alone and never
 * fork: these are called in children. */
#include "generation.h"
#include "paged.h"

uint64_t pm_generation(void)
{
    return 1;
}

int pm_paged_enter(uint64_t start, uint64_t end)
{
    (void)start;
    (void)end;
    return 0;
}

/* Memory that the kernel merges (KSM) is neither moved nor protected: UFFDIO_MOVE refuses it, and a
 * page that was write-protected by userfaultfd is no more once it has been merged, so that a store
 * goes unnoticed. Ours is never to be merged, but PR_SET_MEMORY_MERGE, which any code of the
 * process may call at any time, says so again of all memory. */
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "pager/engine/leaving.h"

#ifndef PR_GET_MEMORY_MERGE
#define PR_GET_MEMORY_MERGE 68
#endif

/* /proc/PID/pagemap: write-protected by userfaultfd. */
#define PROTECTED (UINT64_C(1) << 57)

int pg_is_protected(const struct pg_region *region, uint32_t number)
{
    uint64_t entries[PG_MOST_PAGES], page = region->uffd.page_size;
    size_t count = region->block_size / page, wanted = count * sizeof entries[0];

    if (pread(region->uffd.pagemap, entries, wanted,
              (off_t)(pg_block_address(region, number) / page * sizeof entries[0])) !=
        (ssize_t)wanted)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (entries[i] >> 62 && !(entries[i] & PROTECTED))
            return 0;
    return 1;
}

void pg_unmerge(struct pg_region *region)
{
    madvise((void *)(uintptr_t)region->base, region->length, MADV_UNMERGEABLE);
    pg_staging_unmerge(&region->frames);
    if (!pg_writable(region))
        return;
    for (pg_entry entry = 0; entry < region->blocks.used; entry++) {
        const struct pg_block *block = &region->blocks.at[entry];
        if (block->state == PG_RESIDENT && !(block->flags & PG_DIRTY) &&
            !pg_is_protected(region, block->number))
            pg_set_dirty(&region->blocks, entry, 1);
    }
}

int pg_is_merging(void)
{
    return prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1;
}

void pg_look_at_merging(struct pg_region *region)
{
    int merging = pg_is_merging();

    if (merging && !region->merging)
        pg_unmerge(region);
    region->merging = merging;
}

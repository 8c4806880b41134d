/* The pager's decisions without threads, kernel or store: touches come from standard input, as
 * block numbers of 32 bits, and what they cost goes to standard output.
 *
 *     pager_alone BLOCKS FRAMES BLOCK_SIZE READ_AHEAD <touches
 *
 * All that would move, copy or read says that it has; what else the pager consists of is not
 * linked, for nothing of it is called. Read-ahead is over before the next touch. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pager/engine/choice.h"
#include "pager/engine/faults.c"
#include "pager/engine/leaving.h"

int pg_register(int fd, uint64_t start, uint64_t length, uint64_t mode)
{
    (void)fd, (void)start, (void)length, (void)mode;
    return 0;
}

int pg_move_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length, int later)
{
    (void)uffd, (void)dst, (void)src, (void)length, (void)later;
    return 0;
}

int pg_show(const struct pg_uffd *uffd, uint64_t start, uint64_t length)
{
    (void)uffd, (void)start, (void)length;
    return 0;
}

int pg_move_out(struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                struct pg_pages *pages)
{
    (void)dst, (void)src;
    memset(pages, 0, sizeof *pages);
    pg_add(pages, 0, (unsigned)(length / uffd->page_size));
    return 0;
}

int pg_store_read(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                  size_t count, int nowait, uint64_t *got)
{
    (void)store, (void)offset, (void)nowait;
    *got = count * pieces[0].length;
    return 0;
}

int pg_is_spilled(const struct pg_region *region, uint32_t number)
{
    (void)region, (void)number;
    return 0;
}

int pg_may_write(const struct pg_region *region)
{
    (void)region;
    return 0;
}

void pg_look_at_merging(struct pg_region *region)
{
    (void)region;
}
void pg_frame_available(struct pg_region *region)
{
    (void)region;
}
uint64_t pg_now(void)
{
    return 0;
}

static int set_up(struct pg_region *region, char **arguments)
{
    uint32_t in_flight;

    region->nblocks = (uint32_t)atoi(arguments[0]);
    region->frames.limit = region->frames_most = (uint32_t)atoi(arguments[1]);
    region->block_size = (uint64_t)atoi(arguments[2]);
    region->read_ahead = atoi(arguments[3]);
    region->nbytes = region->nblocks * region->block_size;
    region->mode = PG_READ;
    region->frames.limited = 1;
    region->uffd.page_size = 4096;
    region->uffd.moves = region->uffd.read_only = 1;
    pthread_mutex_init(&region->lock, NULL);
    pthread_cond_init(&region->changed, NULL);
    pthread_cond_init(&region->work, NULL);
    pg_choice_init(region);
    pg_share_out(region);
    region->chunk_most = 1;
    in_flight = 2 * region->policy.window_most + 8;
    return pg_staging_init(&region->frames, &region->uffd, region->block_size,
                           (uint16_t)(region->policy.standby_wanted + 4 * PG_BATCH + in_flight),
                           (uint16_t)(in_flight + PG_BATCH), 0) ||
           pg_ghosts_init(&region->policy, region->frames_most) ||
           pg_blocks_init(&region->blocks, region->nblocks);
}

static void touch(struct pg_region *region, uint32_t number)
{
    pg_entry entry = pg_find(&region->blocks, number);

    if (entry != PG_NONE && region->blocks.at[entry].state == PG_RESIDENT)
        return;
    fault_missing(region, number, pg_block_address(region, number), 0, 0);
    while (region->request_count)
        pg_read_ahead(region);
}

int main(int count, char **arguments)
{
    static struct pg_region region;
    uint32_t number;

    if (count != 5 || set_up(&region, arguments + 1))
        return 1;
    pthread_mutex_lock(&region.lock);
    while (fread(&number, sizeof number, 1, stdin) == 1)
        touch(&region, number);
    printf("%ju %ju %ju %u\n", (uintmax_t)(region.bytes_read / region.block_size),
           (uintmax_t)region.counters.faults, (uintmax_t)region.counters.rescued,
           region.frames.total);
    return 0;
}

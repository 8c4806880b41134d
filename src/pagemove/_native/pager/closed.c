/* Regions that are closed while arrays lead there: nothing else can be mapped at their addresses,
 * and a touch says what has become of them (inherited.c), until the last array has gone. */
#include <errno.h>

#include "pager/inherited.h"
#include "pager/life.h"
#include "pager/pager.h"

int pg_dig(struct pg_region *region)
{
    int error = 0;

    pg_hold_forks();
    if (!region->grave) {
        region->grave = pg_spare_stone();
        if (!region->grave) {
            /* A child that is forked from now on has it from here, and reserved. */
            region->grave = region->stone;
            region->stone = NULL;
        }
        error = region->grave ? 0 : -ENOMEM;
        if (!error) {
            pg_mark_closed(region->grave, region->base, region->length, region->store.label,
                           region->mode);
            pg_watch_graves();
        }
    }
    pg_release_forks();
    return error;
}

void pg_bury(struct pg_region *region, int is_ended)
{
    pg_hold_forks();
    pg_rest(region->grave, !is_ended);
    pg_release_forks();
}

struct pg_stone *pg_grave(const struct pg_region *region)
{
    return region->grave;
}

void pg_leave_closed(struct pg_stone *stone)
{
    pg_hold_forks();
    pg_leave_grave(stone);
    pg_release_forks();
}

void pg_mark_region_lost(struct pg_region *region, const char *line)
{
    pg_hold_forks();
    if (region->stone) {
        pg_mark_lost(region->stone, region->base, region->length, line);
        /* It is not freed with the region. */
        region->stone = NULL;
        pg_watch_graves();
    }
    pg_release_forks();
}

/* What a region is opened with: kept while that goes on, for the program may not wait for it. */
#ifndef PAGEMOVE_PAGER_OPENING_H
#define PAGEMOVE_PAGER_OPENING_H

#include "pager/pager.h"

struct pg_opening {
    struct pg_config config; /* a copy, with all that it points to but descriptors */
    struct pg_helper helper;
    struct pg_compression compression;
    struct pg_taking taking;
    char text[PG_TEXT];
    int has_files; /* it needs none of the program's descriptors any more */
    int ended, error;
    int given_up; /* nobody waits for it */
};

/* setup.c: why the program's descriptors are not there. -EBADF. */
int pg_say_closed(char text[PG_TEXT]);

/* NULL: no memory. */
struct pg_opening *pg_new_opening(const struct pg_config *config);
void pg_free_opening(struct pg_opening *opening);

#endif

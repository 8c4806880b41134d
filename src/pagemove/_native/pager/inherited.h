/* What is said of memory that is not there: in a forked child, and after a region was closed. */
#ifndef PAGEMOVE_PAGER_INHERITED_H
#define PAGEMOVE_PAGER_INHERITED_H

#include <stdint.h>

#include "pager/mechanisms/config.h"

struct pg_stone;

/* What is to be done about a region that a forked child does not have: of a store that others can
 * open too by its mode, of anything else by what it is. */
enum pg_remedy {
    PG_REMEDY_READ = PG_READ,
    PG_REMEDY_WRITE = PG_WRITE,
    PG_REMEDY_PRIVATE = PG_PRIVATE,
    PG_REMEDY_ARRAYS,     /* of an arena, which have no store */
    PG_REMEDY_COMPRESSED, /* memory of the process */
    PG_REMEDY_HELPER,     /* of a helper process, and gone with it */
    PG_REMEDY_TAKEN,      /* handed over by another process */
};

enum pg_remedy pg_remedy_of(const struct pg_config *config);

/* Where it is said, made while memory can be had. NULL: there is none. */
struct pg_stone *pg_new_stone(void);
/* For what is not a region. `text` ends with a newline, and stays. */
struct pg_stone *pg_new_stone_saying(const char *text);
void pg_free_stone(struct pg_stone *stone);

/* In the child: from now on the first touch of what was the region says so. The stone is kept.
 * Nothing else can be mapped there while this process lives: arrays lead into it. With `over` what
 * is mapped there goes; without, the child has nothing there, but what a handler of the fork has
 * mapped, which stays. */
void pg_mark_grave(struct pg_stone *stone, uint64_t base, uint64_t length, const char *label,
                   int mode, enum pg_remedy remedy, int over);

/* The same of what is not a region. */
void pg_mark_memory(struct pg_stone *stone, uint64_t base, uint64_t length);

/* In the child: it could have been there again, but for this. */
void pg_explain_grave(struct pg_stone *stone, const char *why);

/* Whether nothing else has taken its addresses. */
int pg_is_reserved(const struct pg_stone *stone);

/* Of a region of this process, all of which is PROT_NONE soon: from then on a touch says this line.
 * Wants the lock of all regions. */
void pg_mark_lost(struct pg_stone *stone, uint64_t base, uint64_t length, const char *line);

/* The region is there again. The stone may be marked once more. */
void pg_remove_grave(struct pg_stone *stone);

/* What follows is of regions that this process closes; it wants the lock of all regions. */

/* One that was left, or NULL: stones that were marked are not freed. */
struct pg_stone *pg_spare_stone(void);

/* From now on a touch that raises SIGSEGV there says that the region is closed. */
void pg_mark_closed(struct pg_stone *stone, uint64_t base, uint64_t length, const char *label,
                    int mode);

/* Nothing but PROT_NONE is mapped there, and the pager leaves it alone. It is unmapped when the
 * program has left it too, but never if it is to be so `forever`. */
void pg_rest(struct pg_stone *stone, int forever);

/* No array leads there any more. */
void pg_leave_grave(struct pg_stone *stone);

/* In the child, before any is marked: those of its parent hold their addresses here too. */
void pg_graves_forked(void);

/* When some were marked, or left. */
void pg_watch_graves(void);

#endif

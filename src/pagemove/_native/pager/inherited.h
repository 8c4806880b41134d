/* What a forked child says of memory that it does not have. */
#ifndef PAGEMOVE_PAGER_INHERITED_H
#define PAGEMOVE_PAGER_INHERITED_H

#include <stdint.h>

struct pg_stone;

/* Where it is said, made while memory can be had. NULL: there is none. */
struct pg_stone *pg_new_stone(void);
void pg_free_stone(struct pg_stone *stone);

/* In the child: from now on the first touch of what was the region says so. The stone is kept.
 * With `hold` nothing else can be mapped there: it may be there again, or arrays lead into it. */
void pg_mark_grave(struct pg_stone *stone, uint64_t base, uint64_t length, const char *label,
                   int mode, int hold);

/* In the child: it could have been there again, but for this. */
void pg_explain_grave(struct pg_stone *stone, const char *why);

/* Whether nothing else has taken its addresses. */
int pg_is_reserved(const struct pg_stone *stone);

/* The region is there again. The stone may be marked once more. */
void pg_remove_grave(struct pg_stone *stone);

/* In the child, before any is marked: those of its parent hold their addresses here too. */
void pg_graves_forked(void);

/* In the child, when all are marked. */
void pg_watch_graves(void);

#endif

/* What a forked child says of memory that it does not have. */
#ifndef PAGEMOVE_PAGER_INHERITED_H
#define PAGEMOVE_PAGER_INHERITED_H

struct pg_region;
struct pg_stone;

/* Where it is said, made while memory can be had. NULL: there is none. */
struct pg_stone *pg_new_stone(void);
void pg_free_stone(struct pg_stone *stone);

/* In the child: from now on the first touch of what was the region says so. The stone is kept. */
void pg_mark_grave(struct pg_stone *stone, const struct pg_region *region);

/* In the child, when all are marked. */
void pg_watch_graves(void);

#endif

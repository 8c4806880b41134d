/* Which limit of the process an error has met, for messages of the pager's threads. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_LIMITS_H
#define PAGEMOVE_PAGER_MECHANISMS_LIMITS_H

enum { PG_LIMIT_TEXT = 256 };

/* In words, to follow others; empty where none is set that could be behind an errno. */
void pg_name_limit(int error, char text[PG_LIMIT_TEXT]);

#endif

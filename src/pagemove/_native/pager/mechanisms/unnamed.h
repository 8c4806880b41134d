/* Files without a name, which nobody else opens, and which are gone with the process. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_UNNAMED_H
#define PAGEMOVE_PAGER_MECHANISMS_UNNAMED_H

#include <stdint.h>

/* A descriptor of a new one in a directory, which is known to take something, or -errno. */
int pg_open_unnamed(const char *directory);

/* Say why a directory has taken none, and what to do: to `verb` another one, or something else.
 * Whether that is of the directory. If not, a limit is behind it, and another one does not help. */
enum { PG_UNNAMED_TEXT = 256 };
int pg_explain_unnamed(const char *directory, int error, const char *verb,
                       char text[PG_UNNAMED_TEXT]);

/* Bytes that its file system has room for. By name: the program's threads do not have the pager's
 * descriptors. */
uint64_t pg_room_in(const char *directory);

#endif

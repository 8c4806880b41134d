/* Files without a name, which nobody else opens, and which are gone with the process. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_UNNAMED_H
#define PAGEMOVE_PAGER_MECHANISMS_UNNAMED_H

/* A descriptor of a new one in a directory, which is known to take something, or -errno. */
int pg_open_unnamed(const char *directory);

#endif

/* How a taker connects to the giver of an array without the interpreter, and says who it is. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_GREETING_H
#define PAGEMOVE_PAGER_MECHANISMS_GREETING_H

#include "pager/mechanisms/config.h"
#include "pager/mechanisms/wire.h"

/* Open a connection, as who wants to take what `taking` says. 0 or -errno, and `text` says why
 * where that is known. `refused`: the giver has said no, and that will not change. The descriptor
 * is in `wire` from the start, and is the caller's to close. */
int pg_greet(const struct pg_taking *taking, struct pg_wire *wire, int *refused,
             char text[PG_TEXT]);

/* Whether what is at the other end may write to files of this process: it is of this machine, and
 * of the same user or of root, who can do more than that. */
int pg_is_trusted(int fd);

#endif

/* Whether the interpreter of a helper process still comes to those who wait for it.
 *
 * A store that never releases the GIL holds up those of all regions that share the process, and
 * none of its threads could say so. One of these can: it needs no interpreter. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_WATCH_H
#define PAGEMOVE_PAGER_MECHANISMS_WATCH_H

#include <stdint.h>

/* End this process when no beat has come for so long, of the time in which it ran. 0 or -errno. */
int pg_watch_beats(uint64_t patience_ns);

/* For a thread that has the GIL. Not watched: it may take until the next one. */
void pg_beat(int watched);

#endif

/* Messages on standard error. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_VOICE_H
#define PAGEMOVE_PAGER_MECHANISMS_VOICE_H

#include <stddef.h>

/* Say something, unless that would wait: whoever reads it may wait for this thread. When it returns
 * the message is out, for what comes next may end the process. */
__attribute__((format(printf, 1, 2))) void pg_say(const char *format, ...);

/* Write to standard error, unless that would wait. For one that has the program's descriptors; also
 * from a signal handler. */
void pg_write_line(const char *line, size_t length);

/* Each region counts as one user of the thread that speaks; the caller holds the lock of all
 * regions. 0 or -errno. */
int pg_voice_enter(void);
void pg_voice_leave(void);

/* In a forked child, which has no such thread. */
void pg_voice_forget(void);

#endif

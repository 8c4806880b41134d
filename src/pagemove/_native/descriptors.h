/* Descriptors that the library keeps: never one of the standard three, and known again, since the
 * program may close any number and open something else under it. */
#ifndef PAGEMOVE_DESCRIPTORS_H
#define PAGEMOVE_DESCRIPTORS_H

#include <stdint.h>

/* Which file a descriptor is of. */
struct pm_identity {
    uint64_t device, inode;
};

enum { PM_NO_FILE = 0 }; /* the inode of no file */

/* The same file under a number from 3 up; a lower one is closed. -errno; a negative descriptor is
 * passed through as -errno of the call that made it. */
int pm_keep(int fd);

/* Which file it is of now; PM_NO_FILE where it is closed. */
struct pm_identity pm_identify(int fd);

/* Whether a descriptor is still of that file. */
int pm_is_still(int fd, struct pm_identity identity);

/* Close a descriptor unless its number is another file's by now. */
void pm_close(int fd, struct pm_identity identity);

/* Remember what standard output (1) and standard error (2) are, once. */
void pm_note_standard(void);

/* Whether text may be written to descriptor 1 or 2, by the library or by its helper: where it is
 * what it was when the library was loaded. If that was closed since, its number may be that of a
 * data file or a connection; so of others only those will do that were put there on purpose (they
 * are not close-on-exec) and in which text overwrites nothing: a terminal, a file opened for
 * appending, one without a name that captures output. */
int pm_may_print(int fd);

#endif

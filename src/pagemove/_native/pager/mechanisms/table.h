/* A file table for the pager's threads alone.
 *
 * Programs close descriptors that are not theirs: daemons close all of them. Of a userfaultfd the
 * last close makes missing pages read as zeros, and a closed number may be another file's a moment
 * later, which the pager would then read, or write blocks to. So everything that the pager opens is
 * in a table that only its threads have. What it leaves in the program's table is one end of a
 * pipe, whose closing it notices. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_TABLE_H
#define PAGEMOVE_PAGER_MECHANISMS_TABLE_H

#include <stddef.h>

/* Leave the program's file table for a copy that has only the descriptors named; those from 0 to 2
 * that are not are taken by copies of `filler`. Threads started from here on share it. 0 or -errno.
 */
int pg_own_table(int *kept, size_t count, int filler);

#endif

/* The end of a process whose first thread has ended, when only the pager's are left. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_LEADER_H
#define PAGEMOVE_PAGER_MECHANISMS_LEADER_H

/* From now on this process, if its first thread calls this, and every child made by fork ends with
 * exit(0) once only the pager's threads are left, as it would without these. Called again it does
 * nothing. Before the pager has threads. 0 or -errno. */
int pg_leader_begin(void);

#endif

/* Where this process has paged memory, so that no page of it moves behind its pager's back. */
#ifndef PAGEMOVE_PAGED_H
#define PAGEMOVE_PAGED_H

#include <stdint.h>

enum { PM_PAGED_MOST = 4095 };

/* Make the table, once. 0 or -errno. */
int pm_paged_start(void);

/* Enter a region that nobody knows the address of yet. 0, or -ENOSPC. */
int pm_paged_enter(uint64_t start, uint64_t end);
void pm_paged_leave(uint64_t start);

/* Where the first region that has a byte of a range begins; 0: none has. Takes no lock: a region
 * that comes or goes meanwhile may count or not. */
uint64_t pm_paged_at(uint64_t start, uint64_t length);

#endif

/* Where this process has paged memory, so that no page of it moves behind its pager's back. */
#ifndef PAGEMOVE_PAGED_H
#define PAGEMOVE_PAGED_H

#include <stdint.h>

enum { PM_PAGED_MOST = 4095 };

/* Wiped by a fork, which no region outlives. An entry with `end` 0 matches nothing. */
struct pm_paged {
    uint64_t used; /* entries that have ever been in use */
    uint64_t reserved;
    struct {
        uint64_t start, end;
    } ranges[PM_PAGED_MOST];
};

/* Make the table, once. 0 or -errno. */
int pm_paged_start(void);

/* The table of this library; another one that links the same code has to be told. */
struct pm_paged *pm_paged_table(void);

/* Enter a region that nobody knows the address of yet. 0, or -ENOSPC. */
int pm_paged_enter(struct pm_paged *table, uint64_t start, uint64_t end);
void pm_paged_leave(struct pm_paged *table, uint64_t start);

/* Where the first region that has a byte of a range begins; 0: none has. Takes no lock: a region
 * that comes or goes meanwhile may count or not. */
uint64_t pm_paged_at(const struct pm_paged *table, uint64_t start, uint64_t length);

#endif

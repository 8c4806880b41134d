/* What belongs to this process and must not survive a fork. */
#ifndef PAGEMOVE_PROCESS_H
#define PAGEMOVE_PROCESS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

/* Known-broken kernels, by defect; docs/explanation/kernel-versions.md describes them. */
enum {
    PM_DEFECT_STALE_EAGAIN = 1, /* a moved page reported as EEXIST, or left out of a short count */
    PM_DEFECT_HUGE_ZERO = 2,    /* CVE-2026-31397: a moved huge zero page gets a bogus pfn */
    PM_DEFECT_REFUSE = 4,       /* CVE-2024-27007: UFFDIO_MOVE may corrupt memory, never use it */
    PM_DEFECT_SPLIT_SPIN = 8,   /* loops forever on a huge page that cannot be split */
};

enum { PM_STRIPES = 64, PM_STRIPE_SHIFT = 21 };

struct pm_process {
    uint32_t phase; /* of its opening; zero in a page that a fork has wiped */
    uint32_t defects;
    uint32_t no_move_pages; /* move_pages(2) is missing or refused */
    int uffd;               /* knows the destinations; write-protect mode only */
    int pagemap;            /* /proc/self/pagemap, -1 where it may not be opened */
    int maps;               /* /proc/self/maps, -1 likewise */
    uint64_t scratch;       /* a page that is always a hole, with a page table */
    uint64_t tableless;     /* the room of a huge page, always a hole, without one */
    uint64_t page_size;
    uint64_t huge_page_size; /* 0 where the kernel has no THP */
    pthread_mutex_t stripes[PM_STRIPES];
};

/* Map `length` bytes that are zero at first and zero again in every forked child. NULL: errno. */
void *pm_wiped_memory(size_t length);

/* Return this process's own state, opening what it needs. 0 and *process, or -errno. */
int pm_process_get(struct pm_process **process);

/* Prepare for all that follows, once, before there are threads. 0 or -errno. */
int pm_process_start(void);

/* The program has closed or replaced a descriptor: forget them, and the next get opens new ones.
 * Does nothing where they are all in order, as when another thread has reopened them already. */
void pm_process_reopen(void);

/* Set the defects by hand: how the tests reach code for kernels other than the running one. */
int pm_process_set_defects(uint32_t defects);

/* Lock, or unlock, the stripes of both ranges. Lock with `wait` 0 may return -EBUSY. */
uint64_t pm_stripes_of(uint64_t start, uint64_t length);
int pm_stripes_lock(struct pm_process *process, uint64_t stripes, int wait);
void pm_stripes_unlock(struct pm_process *process, uint64_t stripes);

#endif

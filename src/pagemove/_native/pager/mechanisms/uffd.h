/* userfaultfd as the pager needs it, with the kernel's answers translated. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_UFFD_H
#define PAGEMOVE_PAGER_MECHANISMS_UFFD_H

#include <stdint.h>

#include "pager/mechanisms/trouble.h"

/* The pages of one block, bit i for page i; 512 pages at most. */
struct pg_pages {
    uint64_t word[8];
};

enum { PG_MOST_PAGES = 512 };

struct pg_uffd {
    int region;  /* descriptor that the region is registered with */
    int staging; /* of the outgoing slots: a touch of an empty slot there is an error, not a wait */
    int pagemap;
    int shared; /* the three are an engine's */
    int user_mode_only;
    uint64_t page_size;
    int moves; /* whether the kernel has UFFDIO_MOVE and UFFDIO_POISON; else without.c has */

    /* What the region was registered with, and is again when poison is taken away. */
    uint64_t base, length, mode;
    int advice, dumped;
    int read_only;      /* what is moved into the region is write-protected there */
    int wary;           /* somebody stores into it all the same: copy, which protects at once */
    uint64_t *poisoned; /* a bit for each page; NULL: none was, or the kernel does it */
    int empty;          /* a file that poisoned pages are mapped from */
    int forked;         /* a child has, or had, the same pages (parted.c) */
    uint64_t spare;     /* room for a block of those; 0: none yet */
    uint64_t spare_length;
};

/* `moves` 0: do as if the kernel could neither move nor poison; `kernel_faults` 0: as if nobody
 * were allowed those. */
int pg_uffd_open(struct pg_uffd *uffd, int moves, int kernel_faults);

/* That of the region alone; the other then leaves it as it is. */
int pg_uffd_open_region(struct pg_uffd *uffd, int moves, int kernel_faults);
void pg_uffd_close(struct pg_uffd *uffd);

int pg_register(int fd, uint64_t start, uint64_t length, uint64_t mode);

/* Move a full slot into the region; a page that cannot be moved, for it is merged, shared or
 * pinned, is copied and given up in the slot, and so is one that the region has already. Into a
 * read-only region so that nobody who waits for it sees it before it is protected, which with
 * `later` the caller has to do, by pg_show. A thread that comes just then may store into it;
 * where one has tried to, everything is copied, write-protected, for nobody to come in between. 0:
 * the slot is empty. -errno: pages have arrived, and the slot has the others. */
int pg_move_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length, int later);

/* Protect what was moved into a read-only region, and wake those who wait for it. One call for many
 * blocks: with a thread running on another CPU each costs an interruption of that. */
int pg_show(const struct pg_uffd *uffd, uint64_t start, uint64_t length);

/* Move the pages of a block to an empty outgoing slot, and say which there were. Atomic page by
 * page. -EBUSY: a page is pinned; `pages` says which have moved before. What a forked child shares
 * is copied, if the child still has it. */
int pg_move_out(struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                struct pg_pages *pages);

/* Bring what a slot has of a block into the region, where there may be other pages of it: each that
 * arrives leaves the slot. 0: the slot is empty. -errno: to be tried again. */
int pg_bring_in(const struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                int protect);

/* Give up the pages of a slot. */
void pg_empty_pages(uint64_t address, uint64_t length);

/* Which pages of a block's room there are. 0 or -errno. */
int pg_pages_in(const struct pg_uffd *uffd, uint64_t address, uint64_t length,
                struct pg_pages *pages);

int pg_protect(const struct pg_uffd *uffd, uint64_t start, uint64_t length, int protect);
void pg_wake(const struct pg_uffd *uffd, uint64_t start, uint64_t length);

/* Poison the holes of a range: touching them is SIGBUS, and EFAULT for a system call. */
int pg_poison(struct pg_uffd *uffd, uint64_t start, uint64_t length);

/* Make holes of a range, poisoned, locked in memory (mlock) or not. 0 or -errno. */
int pg_discard(struct pg_uffd *uffd, uint64_t start, uint64_t length);

/* The same for pages that are not poisoned, but not for what is locked: -EINVAL, and some may be
 * there. */
int pg_discard_unlocked(uint64_t start, uint64_t length);

/* without.c: whether a page is poisoned by what is mapped there. */
int pg_is_poisoned(const struct pg_uffd *uffd, uint64_t address);

/* Whether a page is there, or swapped out. A page that the kernel has poisoned is there too. */
int pg_is_there(const struct pg_uffd *uffd, uint64_t address);

/* Whether a touch of a page of the region has its answer: contents, or poison. */
static inline int pg_is_answered(const struct pg_uffd *uffd, uint64_t address)
{
    return pg_is_poisoned(uffd, address) || pg_is_there(uffd, address);
}

/* A move of pages, which may end early. Bytes, or -errno of the first page. */
int64_t pg_move_some(const struct pg_uffd *uffd, enum pg_kernel_call call, uint64_t dst,
                     uint64_t src, uint64_t length);

/* parted.c: pg_move_out of pages that may be shared with a child; `pages` keeps what it has. Bit i
 * is for the page i behind `first`. */
int pg_part_out(struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length, unsigned first,
                struct pg_pages *pages);

/* without.c: the same in kernels that cannot move or poison. */
int pg_remap(uint64_t dst, uint64_t src, uint64_t length, uint64_t page);
int pg_remap_out(struct pg_uffd *uffd, uint64_t dst, uint64_t src, uint64_t length,
                 struct pg_pages *pages);
int pg_map_poison(struct pg_uffd *uffd, uint64_t start, uint64_t length);
void pg_unpoison(struct pg_uffd *uffd, uint64_t start, uint64_t length);

static inline int pg_has(const struct pg_pages *pages, unsigned page)
{
    return pages->word[page / 64] >> page % 64 & 1;
}

static inline void pg_add(struct pg_pages *pages, unsigned first, unsigned count)
{
    for (unsigned page = first; page < first + count; page++)
        pages->word[page / 64] |= UINT64_C(1) << page % 64;
}

/* What is done with pages that are there, in memory or in swap: 0 or -errno, which ends it. */
typedef int pg_found(void *argument, uint64_t start, uint64_t end);

/* Do so with each run of them from *at to `end`. 0, or -errno of the function or of looking: then
 * *at is where the look that failed, or had found what it failed for, began. */
int pg_each_found(const struct pg_uffd *uffd, uint64_t *at, uint64_t end, pg_found *function,
                  void *argument);

#endif

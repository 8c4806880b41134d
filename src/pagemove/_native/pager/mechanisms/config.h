/* What a region is opened with. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_CONFIG_H
#define PAGEMOVE_PAGER_MECHANISMS_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "descriptors.h"
#include "pager/mechanisms/budget.h"
#include "pager/mechanisms/proof.h"
#include "pager/state/terms.h"

enum { PG_LANES = 64 };

/* Bits of `direct`. */
enum { PG_DIRECT_READS = 1, PG_DIRECT_WRITES = 2 };

enum pg_injected { PG_INJECT_ERRNO = 0, PG_INJECT_SHORT = 1, PG_INJECT_DELAY = 2 };

/* A fault of the store that tests ask for: calls [first, first+count) of an operation, counted
 * from 0; count 0 means forever. */
struct pg_injection {
    int operation, kind;
    uint64_t first, count;
    int64_t value; /* errno; bytes to leave out; nanoseconds */
};

struct pg_compressed;

/* A process that runs a store written in Python: how to start it, and what it is to get. */
struct pg_helper {
    const char *const *argv;
    int config_fd;        /* handed to it: what its store is */
    int log_fd;           /* handed to it: where its log goes */
    uint32_t lanes;       /* requests under way at once, PG_LANES at most */
    uint64_t buffer_size; /* bytes of the largest request */
    int restarts;         /* how often it is started anew when it has ended */
    const int *given_up;  /* the pager's own */
    struct pg_host *host; /* of the process that is to be shared, and `door_fd` leads to; or NULL */
    int door_fd; /* to a process that runs others; or, if it is new, of one to be started */
    int door_is_new;
    int flush_retryable; /* a flush that has failed lost nothing: asking again is enough */
};

/* Compressed memory in this process as the store. */
struct pg_compression {
    uint64_t limit;    /* bytes of memory for what is kept; 0: none */
    const char *spill; /* a directory for what does not shrink, or has no room; or NULL */
};

/* An array that another process hands over as the store, taken without a helper. */
struct pg_taking {
    const void *address; /* a struct sockaddr of so many bytes: where the giver is */
    uint32_t address_length;
    struct pg_bytes want, secret; /* what to say there; and what both have, at NULL: nothing */
    const char *url;              /* as messages name it */
    const char *backing;          /* a directory for what arrives; or NULL: memory */
    int eager;        /* the giver is told at once, so that the first read finds a connection */
    int quiet;        /* nothing comes in the background: for tests */
    uint64_t late_ns; /* after which, and two round trips, what was asked for is asked for again */
    uint64_t unit, patience_ns; /* bytes that arrive as one */
};

struct pg_config {
    const struct pg_helper *helper;           /* or NULL: the store is a file, or */
    const struct pg_compression *compression; /* or NULL */
    struct pg_compressed *kept;               /* of that, what there is already; or NULL */
    const struct pg_taking *taking;           /* or NULL */

    int fd; /* of the file; duplicated */
    /* What `fd`, or what is handed to the helper, config_fd, log_fd and door_fd, was when it was
     * made: the program may have closed it since. An inode of PM_NO_FILE: not known. */
    struct pm_identity identities[3];
    uint64_t offset; /* of the store's first byte in the file */
    uint64_t nbytes; /* of the store; what lies beyond in the last block reads as zeros */
    const char *label;
    int mode;
    uint64_t block_size;      /* a power of two, from the page size to 2 MiB */
    uint64_t limit;           /* bytes resident at any moment, staging included; 0: none */
    struct pg_budget *budget; /* which the region shares with others, and `limit` is its total; or
                               * NULL */
    uint64_t timeout_ns;      /* how long a failing store is tried again */
    uint64_t writeback_ns; /* after which changed blocks are written; 0: when they have to leave */
    int outlives;          /* what is written is there for others when this process has ended */
    int blank;  /* nothing is in the store yet: a block is zeros, unread, until it is written */
    int plain;  /* a blank one is ordinary memory, also in forked children, until pg_engage */
    int direct; /* past the page cache, where that can be: PG_DIRECT_READS, _WRITES */
    int rings;  /* 0: do without io_uring even where permitted */
    int read_ahead;
    int dumped;                  /* resident blocks are in core dumps */
    int kernel_faults;           /* 0: do without those of system calls, even where permitted */
    int moves;                   /* 0: do without UFFDIO_MOVE even where the kernel has it */
    const char *spill_directory; /* for PG_PRIVATE */
    const char *name;            /* in /proc/self/maps, where the kernel can */
    const struct pg_injection *injections;
    size_t injection_count;

    /* Whether a child made by fork is to have it too (heirs.c), and then of a file its path, and
     * when it was modified last, in nanoseconds, unless it is a device. `identities` has the rest.
     */
    int again;
    const char *path;
    int64_t modified;
};

#endif

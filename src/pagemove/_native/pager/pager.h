/* The pager: memory whose blocks arrive from a store on first touch and can be taken away again.
 *
 * Never includes Python.h: nothing on the way of a fault can wait for the interpreter. Functions
 * return 0 or -errno unless they say otherwise; all but pg_open and pg_close may be called by any
 * thread at any time, but not by a thread that holds what a touching thread may need.
 */
#ifndef PAGEMOVE_PAGER_PAGER_H
#define PAGEMOVE_PAGER_PAGER_H

#include <stddef.h>
#include <stdint.h>

#include "descriptors.h"
#include "pager/mechanisms/budget.h"

enum pg_mode {
    PG_READ = 0,    /* nothing is ever written */
    PG_WRITE = 1,   /* changes go to the store */
    PG_PRIVATE = 2, /* changes stay with the region, in an unnamed file when they have to leave */
};

enum pg_operation { PG_OP_READ = 0, PG_OP_WRITE = 1, PG_OP_SYNC = 2, PG_OP_STATS = 3 };

/* What the pager says to itself, as -PG_...: beyond all errnos, for a store may fail with any of
 * those. `pg_errno_of` translates what leaves it. */
enum pg_code {
    PG_SHORT = 4096, /* the store is shorter than it should be */
    PG_NOT_NOW,      /* no frame, slot, line or place in a queue at present */
    PG_NO_ANSWER,    /* the helper was asked, and has not answered in time */
    PG_GONE,         /* it was asked, and has ended: what became of the request is not known */
    PG_NOT_ASKED,    /* it had ended before it could be asked: nothing became of it */
    PG_NO_MEMORY,    /* there is none for a slot to read into */
    PG_NO_ROOM,      /* more is to be pinned than the limit has room for */
    PG_NOT_DURABLE,  /* of blocks that have left memory it is not known, and never will be */
    PG_INTERRUPTED,  /* the program does not wait any longer */
    PG_UNALIGNED,    /* blocks do not begin where direct I/O can */
    PG_LOST,         /* the region is not there for the program; what was changed is saved */
};

/* The errno that people see for a code, both positive. 0: PG_SHORT, of a flush PG_NOT_DURABLE. */
int pg_errno_of(int code);

struct pg_heir;

enum pg_injected { PG_INJECT_ERRNO = 0, PG_INJECT_SHORT = 1, PG_INJECT_DELAY = 2 };

/* A fault of the store that tests ask for: calls [first, first+count) of an operation, counted
 * from 0; count 0 means forever. */
struct pg_injection {
    int operation, kind;
    uint64_t first, count;
    int64_t value; /* errno; bytes to leave out; nanoseconds */
};

/* A process that runs a store written in Python: how to start it, and what it is to get. */
struct pg_helper {
    const char *const *argv;
    int config_fd;        /* handed to it: what its store is */
    int log_fd;           /* handed to it: where its log goes */
    uint32_t lines;       /* requests under way at once, PG_LINES at most */
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

/* What compresses, and which version of it; empty: there is no library. */
const char *pg_codec_name(void);

enum { PG_LINES = 64, PG_TEXT = 4096 /* the longest explanation of a failure */ };

struct pg_config {
    const struct pg_helper *helper;           /* or NULL: the store is a file, or */
    const struct pg_compression *compression; /* or NULL */

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
    int direct; /* read past the page cache, where that can be */
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
    struct pg_heir *heir; /* which is opened by this */
};

struct pg_counters {
    uint64_t faults, write_faults, rescued, prefetched, evicted, remapped, written_back;
    uint64_t resident, dirty, pinned, leased; /* bytes */
    uint64_t bytes_read, bytes_written, retries, errors, restarts;
    uint64_t background_written, background_failures;
};

struct pg_failure {
    uint64_t sequence;
    int operation, error; /* as of pg_errno_of */
    uint64_t offset, tries;
};

enum { PG_FAILURES = 64, PG_BUCKETS = 256 };

struct pg_region;

/* Ways of a page into a region and out of it. */
enum pg_kernel_call { PG_CALL_COPY = 0, PG_CALL_MOVE_IN = 1, PG_CALL_MOVE_OUT = 2, PG_CALLS };

/* For tests: of every `period` pages (0: of all) that take such a way, those from `first` on, so
 * many, fail with an errno. `error` 0: none. */
void pg_set_trouble(int call, uint64_t first, uint64_t count, uint64_t period, int error);

/* What threads of the program ask now and then while they wait for a region to be opened or closed,
 * or for a call: not 0, they return -PG_INTERRUPTED at once. What they have asked for then ends as
 * soon as it can, between two blocks, in the pager's own threads. For all regions. */
void pg_ask_while_waiting(int (*may_wait_no_longer)(void));

/* Ask that. */
int pg_may_wait_no_longer(void);

/* Where the helper can say why it could not start, `text` does. */
int pg_open(const struct pg_config *config, struct pg_region **region, char text[PG_TEXT]);

/* Unmap and free. Changes that were not flushed are lost. In a forked child it only frees. The
 * region is not there for the program any more also if -PG_INTERRUPTED is returned. */
int pg_close(struct pg_region *region);

/* The same without asking whether to wait. */
void pg_drop(struct pg_region *region, int waiting);

uint64_t pg_address(const struct pg_region *region);

/* Whether faults raised inside the kernel (read(2) into the region) are served: they are not
 * where the process may only have UFFD_USER_MODE_ONLY. */
int pg_kernel_faults(const struct pg_region *region);

/* Whether the process that runs its store may run those of other regions. */
int pg_shares_helper(const struct pg_region *region);

/* Whether blocks leave by UFFDIO_MOVE; else by mremap, and arrive by copy. */
int pg_moves(const struct pg_region *region);

/* Whether the store is compressed memory of this process. */
int pg_compresses(const struct pg_region *region);

/* Whether the program has closed its descriptors: it raises SIGSEGV on access, all calls fail. */
int pg_lost(const struct pg_region *region);

/* Read blocks of a range ahead; with `wait`, return when all are there or have failed:
 * -EIO if one cannot be read. */
int pg_prefetch(struct pg_region *region, uint64_t offset, uint64_t length, int wait);

/* Take blocks that touch the range away, changed ones after writing them back. */
int pg_evict(struct pg_region *region, uint64_t offset, uint64_t length);

/* Blocks that follow each other. */
struct pg_run {
    uint32_t first, count;
};

/* Have whole blocks of a region that was opened blank be zeros again, at once and whatever they
 * were: neither memory nor the store keeps anything of them. For memory that nobody uses any more.
 * Runs no signal handlers, and may be called with the interpreter's lock. -EBUSY: a block is
 * pinned, or the helper may still write to it; others may be zeros then. */
int pg_discard_blocks(struct pg_region *region, uint64_t offset, uint64_t length);

/* Serve a region that was opened `plain`, and evict from it, from now on; what is in it counts as
 * changed. Nothing if it is served already. Runs no signal handlers, and may be called with the
 * interpreter's lock. 0, or -errno: it is ordinary memory as before. */
int pg_engage(struct pg_region *region);

/* Not 0 until then; to be loaded atomically. */
const int *pg_plain_flag(const struct pg_region *region);

/* Bring blocks in and have them stay until they are unpinned, as often as they were pinned. With
 * `write` a system call can write into them without a fault, and they count as dirty. -PG_NO_ROOM:
 * the limit does not allow it; -EIO: one cannot be read. Then nothing is pinned. */
int pg_pin(struct pg_region *region, const struct pg_run *runs, size_t count, int write);
void pg_unpin(struct pg_region *region, const struct pg_run *runs, size_t count);

/* Bytes that can be pinned at most, all together. */
uint64_t pg_pinnable(struct pg_region *region);

/* Read blocks of runs that ascend, with as many reads under way as pay. With `wait`, return when
 * all are there or have failed: -EIO if one cannot be read. Blocks that are there count as used.
 * Of more than pg_gatherable bytes the first may have left when the last arrive. */
int pg_gather(struct pg_region *region, const struct pg_run *runs, size_t count, int wait);
uint64_t pg_gatherable(struct pg_region *region);

/* Make durable what was stored before. Blocks that cannot be written stay as they are. -PG_LOST: of
 * a region that is lost all is saved. */
int pg_flush(struct pg_region *region);

/* Flush all regions of the process whose stores outlive it, at once. Returns how many could not be
 * saved, or not in so many nanoseconds; which, a message says. */
unsigned pg_save_all(uint64_t nanoseconds);

/* Have SIGTERM save all regions, for so long at most, and then end the process as by default, in
 * which it differs from the default action only by that. 0 or -errno; -EBUSY: the process has a
 * handler of its own, and it is not one that was replaced before because of `replace`. */
int pg_save_on_sigterm(uint64_t nanoseconds, int replace);

/* Undo that, if it is still so. */
void pg_leave_sigterm(void);

void pg_counters(struct pg_region *region, struct pg_counters *counters);

/* The newest failures, oldest first; at most PG_FAILURES. Returns how many. */
size_t pg_failures(struct pg_region *region, struct pg_failure *failures);

/* What the store said of a failure that pg_failures has given; empty if it is too old. */
void pg_failure_text(struct pg_region *region, uint64_t sequence, char text[PG_TEXT]);

/* How a file is read. `queue`: by io_uring, 1; by threads, -errno says why; 0: all so far was in
 * the page cache, or a helper reads. `direct`: as pg_direct's state. */
struct pg_reading {
    int queue, direct;
    uint32_t alignment;
};
void pg_reading_of(const struct pg_region *region, struct pg_reading *reading);

/* Whether this thread may open a ring of io_uring: 0 or -errno. */
int pg_try_ring(void);

/* What a store in a helper process, or compressed memory, says of itself; empty for a file. */
int pg_store_stats(struct pg_region *region, char text[PG_TEXT]);

/* Read these blocks ahead, in this order. */
int pg_replay(struct pg_region *region, const uint32_t *numbers, uint32_t count);

/* Remember from now on in which order blocks are needed for the first time. */
int pg_record(struct pg_region *region);

/* Copy the order out, at most `most` of it. Returns how long it is. */
uint32_t pg_recorded(struct pg_region *region, uint32_t *numbers, uint32_t most);

/* Fault latency: counts[i] faults took less than pg_bucket_limit(i) nanoseconds, but no less than
 * the limit of the bucket before. */
void pg_histogram(struct pg_region *region, uint64_t counts[PG_BUCKETS]);
uint64_t pg_bucket_limit(size_t bucket);

/* Bytes of memory that the state of blocks takes. */
uint64_t pg_state_bytes(struct pg_region *region);

#endif

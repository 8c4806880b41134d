/* What the pager did, and when: a ring of events in a file that is mapped, so that it can be read
 * while a region hangs, and after SIGKILL. While nothing is traced, a load and a branch each. None
 * of these needs a lock, or blocks. The layout is that of pagemove/paging/trace.py. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_TRACE_H
#define PAGEMOVE_PAGER_MECHANISMS_TRACE_H

#include <stdint.h>

enum {
    PG_TRACE_FAULT = 1, /* from its event to the block's arrival */
    PG_TRACE_READ,
    PG_TRACE_WRITE,
    PG_TRACE_SYNC,
    PG_TRACE_EVICT,  /* a moment, as are the next two */
    PG_TRACE_RETRY,  /* of a block that a thread waits for */
    PG_TRACE_FAILED, /* a call of the store, for good */
    PG_TRACE_FLUSH,
};

enum { PG_TRACE_LABEL = 96 };

struct pg_trace;
extern struct pg_trace *pg_trace;

/* Trace into a file of pg_trace_bytes() zeros, from now on; it can be closed. 0 or -errno. */
uint64_t pg_trace_bytes(void);
int pg_trace_start(int fd);

/* A region, which others then call by its address. */
void pg_trace_region(uint64_t base, uint64_t length, uint64_t block_size, const char *label);
void pg_trace_put(uint64_t region, int kind, uint64_t offset, uint64_t bytes, uint64_t began,
                  int error);

/* In the child of a fork. */
void pg_trace_forked(void);

static inline int pg_tracing(void)
{
    return __builtin_expect(__atomic_load_n(&pg_trace, __ATOMIC_RELAXED) != 0, 0);
}

/* When something begins, for pg_trace_since. */
uint64_t pg_trace_clock(void);
static inline uint64_t pg_trace_begin(void)
{
    return pg_tracing() ? pg_trace_clock() : 0;
}

/* Something has ended, with an error or 0. */
static inline void pg_trace_since(uint64_t region, int kind, uint64_t offset, uint64_t bytes,
                                  uint64_t began, int error)
{
    if (pg_tracing())
        pg_trace_put(region, kind, offset, bytes, began ? began : pg_trace_clock(), error);
}

static inline void pg_trace_moment(uint64_t region, int kind, uint64_t offset, uint64_t bytes,
                                   int error)
{
    pg_trace_since(region, kind, offset, bytes, 0, error);
}

#endif

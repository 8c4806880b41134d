/* What is counted of a region. */
#ifndef PAGEMOVE_PAGER_STATE_COUNTERS_H
#define PAGEMOVE_PAGER_STATE_COUNTERS_H

#include <stddef.h>
#include <stdint.h>

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

/* Fault latency: counts[i] faults took less than pg_bucket_limit(i) nanoseconds, but no less than
 * the limit of the bucket before. */
void pg_note_latency(uint64_t histogram[PG_BUCKETS], uint64_t nanoseconds);
uint64_t pg_bucket_limit(size_t bucket);

#endif

#include "pager/state/counters.h"

/* Eight buckets to every power of two: within 12 percent of the truth. */
void pg_note_latency(uint64_t histogram[PG_BUCKETS], uint64_t nanoseconds)
{
    unsigned power, bucket;

    if (nanoseconds > INT64_MAX)
        return; /* of a block for which there was no hurry any more */
    if (nanoseconds < 8) {
        bucket = (unsigned)nanoseconds;
    } else {
        power = 63 - (unsigned)__builtin_clzll(nanoseconds);
        bucket = (power - 2) * 8 + (nanoseconds >> (power - 3) & 7);
    }
    histogram[bucket < PG_BUCKETS ? bucket : PG_BUCKETS - 1]++;
}

uint64_t pg_bucket_limit(size_t bucket)
{
    return bucket < 8 ? bucket + 1 : (8 + bucket % 8 + 1) << (bucket / 8 - 1);
}

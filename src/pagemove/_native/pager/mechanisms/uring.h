/* A ring of reads that are under way: io_uring(7), by the kernel's own interface. It belongs to the
 * thread that has opened it; no other may use it. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_URING_H
#define PAGEMOVE_PAGER_MECHANISMS_URING_H

#include <stddef.h>
#include <stdint.h>

enum { PG_RING = 64 /* reads under way at most */ };

struct pm_sqe;
struct pm_cqe;

struct pg_ring {
    int fd; /* to be polled: readable when a read has ended. -1: not open */
    struct pm_sqe *sqes;
    const struct pm_cqe *cqes;
    void *rings;
    uint64_t rings_length, sqes_length;
    uint32_t *sq_head, *sq_tail, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask;
    uint32_t queued; /* not yet submitted */
    uint32_t under_way;
    /* What the kernel did not take. */
    uint64_t refused[PG_RING];
    uint32_t refused_count;
    int refusal;
};

/* 0 or -errno: EPERM, ENOSYS and others where it is not permitted, EINVAL where it is too old. */
int pg_ring_open(struct pg_ring *ring);

/* Nothing may be under way. */
void pg_ring_close(struct pg_ring *ring);

/* Queue a read; `flags` as of preadv2(2). -EAGAIN: PG_RING are under way. The vector may go once it
 * is submitted. */
struct iovec;
int pg_ring_read(struct pg_ring *ring, int fd, const struct iovec *vector, size_t count,
                 uint64_t offset, int flags, uint64_t tag);

/* Submit what is queued, and with `wait`, unless one has ended already, wait until so many reads
 * have ended, or a signal comes. */
void pg_ring_enter(struct pg_ring *ring, unsigned wait);

/* Submit what is queued; whether the read with that tag has ended on the way. */
int pg_ring_submit(struct pg_ring *ring, uint64_t tag);

/* Whether pg_ring_take has something. */
int pg_ring_has_ended(const struct pg_ring *ring);

/* A read that has ended: its tag, and the bytes that were read or -errno. 0: there is none. */
int pg_ring_take(struct pg_ring *ring, uint64_t *tag, int *result);

#endif

#define _GNU_SOURCE
#include "pager/mechanisms/uring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* linux/io_uring.h, which may be older than the kernel. */

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif
#ifndef SYS_io_uring_enter
#define SYS_io_uring_enter 426
#endif
#ifndef SYS_io_uring_register
#define SYS_io_uring_register 427
#endif

/* What has ended is put into the ring when the thread next enters the kernel, or at once where it
 * sleeps there in poll(2), which goes on and finds the ring readable. DEFER_TASKRUN does so in
 * io_uring_enter only: poll does not return (6.18). */
#define SETUP_COOP_TASKRUN (1u << 8)
#define SETUP_SINGLE_ISSUER (1u << 12)
#define FEAT_SINGLE_MMAP (1u << 0)
#define FEAT_SUBMIT_STABLE (1u << 2)
#define ENTER_GETEVENTS 1u
#define REGISTER_IOWQ_MAX_WORKERS 19u
#define OFFSET_SQES UINT64_C(0x10000000)

enum { OP_READV = 1, OP_READ = 22 };

struct pm_sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len, rw_flags;
    uint64_t user_data;
    uint64_t unused[3];
};

struct pm_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};

struct sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct sq_offsets sq_off;
    struct cq_offsets cq_off;
};

_Static_assert(sizeof(struct pm_sqe) == 64, "struct io_uring_sqe");
_Static_assert(sizeof(struct pm_cqe) == 16, "struct io_uring_cqe");
_Static_assert(sizeof(struct params) == 120, "struct io_uring_params");

static int enter(const struct pg_ring *ring, uint32_t submit, uint32_t wait)
{
    long done =
        syscall(SYS_io_uring_enter, ring->fd, submit, wait, wait ? ENTER_GETEVENTS : 0, NULL, 0);

    return done < 0 ? -errno : (int)done;
}

/* Map a part of the ring, which a forked child has no use for. */
static void *map(const struct pg_ring *ring, uint64_t length, uint64_t offset)
{
    void *address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                         (off_t)offset);

    if (address == MAP_FAILED)
        return NULL;
    madvise(address, length, MADV_DONTFORK);
    return address;
}

static int map_rings(struct pg_ring *ring, const struct params *params)
{
    uint64_t sq_end = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    uint64_t cq_end = params->cq_off.cqes + params->cq_entries * sizeof(struct pm_cqe);
    uint32_t *array;
    char *base;

    ring->rings_length = sq_end > cq_end ? sq_end : cq_end;
    ring->sqes_length = params->sq_entries * sizeof(struct pm_sqe);
    base = ring->rings = map(ring, ring->rings_length, 0);
    if (!base)
        return -errno;
    ring->sqes = map(ring, ring->sqes_length, OFFSET_SQES);
    if (!ring->sqes)
        return -errno;
    ring->sq_head = (uint32_t *)(void *)(base + params->sq_off.head);
    ring->sq_tail = (uint32_t *)(void *)(base + params->sq_off.tail);
    ring->cq_head = (uint32_t *)(void *)(base + params->cq_off.head);
    ring->cq_tail = (uint32_t *)(void *)(base + params->cq_off.tail);
    ring->cqes = (const struct pm_cqe *)(const void *)(base + params->cq_off.cqes);
    ring->sq_mask = params->sq_entries - 1;
    ring->cq_mask = params->cq_entries - 1;
    /* Entries are used in order. */
    array = (uint32_t *)(void *)(base + params->sq_off.array);
    for (uint32_t i = 0; i < params->sq_entries; i++)
        array[i] = i;
    return 0;
}

/* What cannot be read without waiting takes a thread of the kernel each, which are few by default:
 * those that wait for one file that hangs would keep others waiting. Before 5.15 they do. */
static void allow_threads(const struct pg_ring *ring)
{
    uint32_t most[2] = {PG_RING, 0};

    syscall(SYS_io_uring_register, ring->fd, REGISTER_IOWQ_MAX_WORKERS, most, 2);
}

int pg_ring_open(struct pg_ring *ring)
{
    struct params params = {.flags = SETUP_COOP_TASKRUN | SETUP_SINGLE_ISSUER};
    int error = 0;

    *ring = (struct pg_ring){.fd = -1};
    ring->fd = (int)syscall(SYS_io_uring_setup, PG_RING, &params);
    if (ring->fd < 0)
        return -errno;
    if (!(params.features & FEAT_SINGLE_MMAP) || !(params.features & FEAT_SUBMIT_STABLE))
        error = -EINVAL;
    if (!error)
        error = map_rings(ring, &params);
    if (error)
        pg_ring_close(ring);
    else
        allow_threads(ring);
    return error;
}

void pg_ring_close(struct pg_ring *ring)
{
    if (ring->rings)
        munmap(ring->rings, ring->rings_length);
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_length);
    if (ring->fd >= 0)
        close(ring->fd);
    *ring = (struct pg_ring){.fd = -1};
}

int pg_ring_read(struct pg_ring *ring, int fd, const struct iovec *vector, size_t count,
                 uint64_t offset, int flags, uint64_t tag)
{
    uint32_t tail = *ring->sq_tail;

    if (ring->queued + ring->under_way + ring->refused_count >= PG_RING)
        return -EAGAIN;
    ring->sqes[tail & ring->sq_mask] =
        (struct pm_sqe){.opcode = count == 1 ? OP_READ : OP_READV,
                        .fd = fd,
                        .off = offset,
                        .addr = (uint64_t)(uintptr_t)(count == 1 ? vector->iov_base : vector),
                        .len = (uint32_t)(count == 1 ? vector->iov_len : count),
                        .rw_flags = (uint32_t)flags,
                        .user_data = tag};
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    ring->queued++;
    return 0;
}

/* Take back what the kernel does not want. */
static void take_back(struct pg_ring *ring, int error)
{
    uint32_t head = __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE), tail = *ring->sq_tail;

    for (uint32_t at = head; at != tail; at++)
        ring->refused[ring->refused_count++] = ring->sqes[at & ring->sq_mask].user_data;
    __atomic_store_n(ring->sq_tail, head, __ATOMIC_RELEASE);
    ring->under_way += ring->queued - (tail - head);
    ring->queued = 0;
    ring->refusal = error;
}

int pg_ring_has_ended(const struct pg_ring *ring)
{
    return ring->refused_count ||
           *ring->cq_head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
}

void pg_ring_enter(struct pg_ring *ring, unsigned wait)
{
    do {
        int done = enter(ring, ring->queued, pg_ring_has_ended(ring) ? 0 : wait);
        if (done > 0) {
            ring->queued -= (uint32_t)done;
            ring->under_way += (uint32_t)done;
        } else if (done != -EINTR && ring->queued) {
            take_back(ring, done ? done : -EAGAIN);
        }
    } while (ring->queued);
}

int pg_ring_submit(struct pg_ring *ring, uint64_t tag)
{
    uint32_t from = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE), end;

    pg_ring_enter(ring, 0);
    end = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
    while (from != end)
        if (ring->cqes[from++ & ring->cq_mask].user_data == tag)
            return 1;
    return 0;
}

int pg_ring_take(struct pg_ring *ring, uint64_t *tag, int *result)
{
    uint32_t head = *ring->cq_head;

    if (ring->refused_count) {
        *tag = ring->refused[--ring->refused_count];
        *result = ring->refusal;
        return 1;
    }
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
        return 0;
    *tag = ring->cqes[head & ring->cq_mask].user_data;
    *result = ring->cqes[head & ring->cq_mask].res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    ring->under_way--;
    return 1;
}

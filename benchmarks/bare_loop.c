/* The bare loop, as userfaultfd(2) shows it: one thread waits for a fault, reads the block into a
 * buffer with pread, installs it with UFFDIO_COPY. With a limit it evicts the oldest block with
 * MADV_DONTNEED; where the memory is writable it installs what was only read write-protected, so
 * that it knows which blocks to write back. Compiled by _baselines.py. */
#include "userfault.h"
#include <pthread.h>
#include <signal.h>

enum { RESIDENT = 1, DIRTY = 2 };

struct bare_loop {
    struct region region;
    int file;
    bool writable;
    size_t block, limit; /* bytes; blocks, 0 for none */
    uint8_t *buffer;
    uint8_t *states;   /* of each block */
    uint64_t *arrived; /* a ring of the resident blocks, oldest first */
    size_t oldest, resident;
    _Atomic uint64_t faults;
    pthread_t thread;
};

static void evict_oldest(struct bare_loop *loop)
{
    uint64_t number = loop->arrived[loop->oldest];
    size_t offset = number * loop->block;

    if (loop->states[number] & DIRTY) {
        /* A writer on another CPU has to wait now: what it writes would be lost. */
        insist(region_protect(&loop->region, offset, loop->block, true), "UFFDIO_WRITEPROTECT");
        insist(whole(pwrite(loop->file, loop->region.start + offset, loop->block, (off_t)offset),
                     loop->block),
               "pwrite");
    }
    insist(region_discard(&loop->region, offset, loop->block), "MADV_DONTNEED");
    loop->states[number] = 0;
    loop->oldest = (loop->oldest + 1) % loop->limit;
    loop->resident--;
}

static void fill(struct bare_loop *loop, uint64_t number, bool to_write)
{
    size_t offset = number * loop->block;
    bool dirty = loop->writable && to_write;

    if (loop->states[number] & RESIDENT) {
        /* Two threads met the same hole; the first one's fault has filled it. */
        struct uffdio_range range = {(uintptr_t)loop->region.start + offset, loop->block};
        insist(ioctl(loop->region.uffd, UFFDIO_WAKE, &range) ? -errno : 0, "UFFDIO_WAKE");
        return;
    }
    insist(whole(pread(loop->file, loop->buffer, loop->block, (off_t)offset), loop->block),
           "pread");
    loop->states[number] = dirty ? RESIDENT | DIRTY : RESIDENT;
    insist(region_copy(&loop->region, offset, loop->buffer, loop->block, loop->writable && !dirty),
           "UFFDIO_COPY");
    if (!loop->limit)
        return;
    loop->arrived[(loop->oldest + loop->resident) % loop->limit] = number;
    /* Room for the next one, while the touching thread goes on. */
    if (++loop->resident == loop->limit)
        evict_oldest(loop);
}

static void *serve(void *argument)
{
    struct bare_loop *loop = argument;
    struct uffd_msg message;

    while (region_next_fault(&loop->region, &message)) {
        uint64_t flags = message.arg.pagefault.flags;
        uint64_t offset = message.arg.pagefault.address - (uintptr_t)loop->region.start;
        uint64_t number = offset / loop->block;

        loop->faults++;
        if (!(flags & UFFD_PAGEFAULT_FLAG_WP)) {
            fill(loop, number, flags & UFFD_PAGEFAULT_FLAG_WRITE);
            continue;
        }
        /* Evicted meanwhile: the writer wakes, and meets a hole. */
        if (loop->states[number] & RESIDENT)
            loop->states[number] |= DIRTY;
        insist(region_protect(&loop->region, number * loop->block, loop->block, false),
               "UFFDIO_WRITEPROTECT");
    }
    return NULL;
}

static void bare_loop_free(struct bare_loop *loop)
{
    region_close(&loop->region);
    if (loop->buffer)
        munmap(loop->buffer, loop->block);
    free(loop->states);
    free(loop->arrived);
    free(loop);
}

/* NULL with errno. `nbytes` is a multiple of `block`; `limit` counts blocks, 0 for none. */
struct bare_loop *bare_loop_open(int file, size_t nbytes, size_t block, size_t limit, bool writable)
{
    struct bare_loop *loop = calloc(1, sizeof *loop);
    sigset_t all, before;
    int error;

    if (!loop)
        return NULL;
    loop->file = file;
    loop->writable = writable;
    loop->block = block;
    loop->limit = limit;
    error = region_open(&loop->region, nbytes, writable);
    if (!error) {
        loop->states = calloc(nbytes / block, 1);
        loop->arrived = calloc(limit ? limit : 1, sizeof *loop->arrived);
        loop->buffer = mmap(NULL, block, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (loop->buffer == MAP_FAILED)
            loop->buffer = NULL;
        if (!loop->states || !loop->arrived || !loop->buffer)
            error = -ENOMEM;
    }
    if (!error) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = -pthread_create(&loop->thread, NULL, serve, loop);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (error) {
        bare_loop_free(loop);
        errno = -error;
        return NULL;
    }
    return loop;
}

void *bare_loop_address(const struct bare_loop *loop)
{
    return loop->region.start;
}

uint64_t bare_loop_faults(const struct bare_loop *loop)
{
    return loop->faults;
}

void bare_loop_close(struct bare_loop *loop)
{
    region_stop(&loop->region);
    pthread_join(loop->thread, NULL);
    bare_loop_free(loop);
}

/* Sequential paging by UFFDIO_COPY and MADV_DONTNEED with read-ahead: one thread serves the faults,
 * another one reads the blocks that come next into buffers, meanwhile. Compiled by _baselines.py.
 *
 * The buffers count towards the limit, as frames of the library do. */
#include "userfault.h"
#include <pthread.h>
#include <signal.h>

/* Read ahead so far, where the limit is not small. */
enum { BUFFERS = 4 };
#define NONE UINT64_MAX

struct copy_ahead {
    struct region region;
    int file;
    size_t block, limit; /* bytes, blocks */
    int buffered;        /* how many of `buffers` there are */
    uint64_t *arrived;   /* a ring of the resident blocks, oldest first */
    size_t oldest, resident;
    _Atomic uint64_t faults;
    pthread_t handler, reader;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint8_t *buffers[BUFFERS];
    uint64_t holds[BUFFERS]; /* the block that is in it, or NONE */
    uint64_t next;           /* the block to be read next */
    uint64_t reading;        /* the block being read, or NONE; dropped if the handler changes it */
    bool ending;
};

static int find(const struct copy_ahead *paging, uint64_t number)
{
    for (int i = 0; i < paging->buffered; i++)
        if (paging->holds[i] == number)
            return i;
    return -1;
}

static void *read_on(void *argument)
{
    struct copy_ahead *paging = argument;

    pthread_mutex_lock(&paging->lock);
    while (!paging->ending) {
        int to = find(paging, NONE);
        uint64_t number = paging->next;

        if (to < 0 || number * paging->block >= paging->region.nbytes) {
            pthread_cond_wait(&paging->changed, &paging->lock);
            continue;
        }
        paging->reading = number;
        paging->next = number + 1;
        pthread_mutex_unlock(&paging->lock);
        ssize_t done = pread(paging->file, paging->buffers[to], paging->block,
                             (off_t)(number * paging->block));
        insist(whole(done, paging->block), "pread");
        pthread_mutex_lock(&paging->lock);
        if (paging->reading == number)
            paging->holds[to] = number;
        paging->reading = NONE;
        pthread_cond_broadcast(&paging->changed);
    }
    pthread_mutex_unlock(&paging->lock);
    return NULL;
}

/* Called with the lock: the buffer that holds the block, or will in a moment. */
static int wait_for(struct copy_ahead *paging, uint64_t number)
{
    int from = find(paging, number);

    if (from < 0 && paging->reading != number) {
        /* Not what was expected: forget that, and begin here. */
        for (int i = 0; i < paging->buffered; i++)
            paging->holds[i] = NONE;
        paging->reading = NONE;
        paging->next = number;
        pthread_cond_broadcast(&paging->changed);
    }
    while ((from = find(paging, number)) < 0)
        pthread_cond_wait(&paging->changed, &paging->lock);
    return from;
}

static void *serve(void *argument)
{
    struct copy_ahead *paging = argument;
    struct uffd_msg message;

    while (region_next_fault(&paging->region, &message)) {
        uint64_t offset = message.arg.pagefault.address - (uintptr_t)paging->region.start;
        uint64_t number = offset / paging->block;

        paging->faults++;
        pthread_mutex_lock(&paging->lock);
        int from = wait_for(paging, number);
        pthread_mutex_unlock(&paging->lock);
        insist(region_copy(&paging->region, number * paging->block, paging->buffers[from],
                           paging->block, false),
               "UFFDIO_COPY");
        pthread_mutex_lock(&paging->lock);
        paging->holds[from] = NONE;
        pthread_cond_broadcast(&paging->changed);
        pthread_mutex_unlock(&paging->lock);

        paging->arrived[(paging->oldest + paging->resident++) % paging->limit] = number;
        if (paging->resident + (size_t)paging->buffered < paging->limit)
            continue;
        /* Room for the next one, while the touching thread goes on. */
        insist(region_discard(&paging->region, paging->arrived[paging->oldest] * paging->block,
                              paging->block),
               "MADV_DONTNEED");
        paging->oldest = (paging->oldest + 1) % paging->limit;
        paging->resident--;
    }
    return NULL;
}

static void copy_ahead_free(struct copy_ahead *paging)
{
    region_close(&paging->region);
    for (int i = 0; i < BUFFERS; i++)
        if (paging->buffers[i])
            munmap(paging->buffers[i], paging->block);
    free(paging->arrived);
    free(paging);
}

static int start(struct copy_ahead *paging)
{
    int error = -pthread_create(&paging->reader, NULL, read_on, paging);

    if (error)
        return error;
    error = -pthread_create(&paging->handler, NULL, serve, paging);
    if (error) {
        pthread_mutex_lock(&paging->lock);
        paging->ending = true;
        pthread_cond_broadcast(&paging->changed);
        pthread_mutex_unlock(&paging->lock);
        pthread_join(paging->reader, NULL);
    }
    return error;
}

/* NULL with errno. `nbytes` is a multiple of `block`; `limit` counts blocks, at least four. */
struct copy_ahead *copy_ahead_open(int file, size_t nbytes, size_t block, size_t limit)
{
    struct copy_ahead *paging = calloc(1, sizeof *paging);
    sigset_t all, before;
    int error;

    if (!paging)
        return NULL;
    paging->file = file;
    paging->block = block;
    paging->limit = limit;
    paging->reading = NONE;
    /* At least half of the limit holds blocks that can be touched. */
    paging->buffered = limit / 2 < BUFFERS ? (int)(limit / 2) : BUFFERS;
    pthread_mutex_init(&paging->lock, NULL);
    pthread_cond_init(&paging->changed, NULL);
    error = region_open(&paging->region, nbytes, false);
    paging->arrived = calloc(limit, sizeof *paging->arrived);
    if (!error && !paging->arrived)
        error = -ENOMEM;
    for (int i = 0; i < paging->buffered && !error; i++) {
        void *buffer = mmap(NULL, block, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (buffer == MAP_FAILED)
            error = -errno;
        else
            paging->buffers[i] = buffer;
        paging->holds[i] = NONE;
    }
    /* Nothing is read before the first fault says where. */
    paging->next = nbytes / block;
    if (!error) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = start(paging);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (error) {
        copy_ahead_free(paging);
        errno = -error;
        return NULL;
    }
    return paging;
}

void *copy_ahead_address(const struct copy_ahead *paging)
{
    return paging->region.start;
}

uint64_t copy_ahead_faults(const struct copy_ahead *paging)
{
    return paging->faults;
}

void copy_ahead_close(struct copy_ahead *paging)
{
    region_stop(&paging->region);
    pthread_join(paging->handler, NULL);
    pthread_mutex_lock(&paging->lock);
    paging->ending = true;
    pthread_cond_broadcast(&paging->changed);
    pthread_mutex_unlock(&paging->lock);
    pthread_join(paging->reader, NULL);
    copy_ahead_free(paging);
}

#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

int pg_store_init(struct pg_store *store, const struct pg_config *config)
{
    size_t bytes = config->injection_count * sizeof *store->injections;

    *store = (struct pg_store){.fd = fcntl(config->fd, F_DUPFD_CLOEXEC, 3),
                               .offset = config->offset,
                               .nbytes = config->nbytes,
                               .injection_count = config->injection_count};
    if (store->fd < 0)
        return -errno;
    store->label = strdup(config->label ? config->label : "");
    store->injections = malloc(bytes ? bytes : 1);
    if (!store->label || !store->injections) {
        pg_store_free(store);
        return -ENOMEM;
    }
    if (bytes)
        memcpy(store->injections, config->injections, bytes);
    return 0;
}

void pg_store_free(struct pg_store *store)
{
    if (store->fd >= 0)
        close(store->fd);
    free(store->label);
    free(store->injections);
    *store = (struct pg_store){.fd = -1};
}

/* Count a call and do what tests want of it: a positive errno, or the bytes to leave out. */
static int inject(struct pg_store *store, int operation, uint64_t *shorten)
{
    uint64_t call;
    int error = 0;

    *shorten = 0;
    if (!store->injection_count)
        return 0;
    call = __atomic_fetch_add(&store->calls[operation], 1, __ATOMIC_RELAXED);
    for (size_t i = 0; i < store->injection_count; i++) {
        const struct pg_injection *one = &store->injections[i];
        if (one->operation != operation || call < one->first ||
            (one->count && call - one->first >= one->count))
            continue;
        if (one->kind == PG_INJECT_DELAY) {
            struct timespec pause = {one->value / 1000000000, one->value % 1000000000};
            while (nanosleep(&pause, &pause) && errno == EINTR)
                ;
        } else if (one->kind == PG_INJECT_SHORT) {
            *shorten = (uint64_t)one->value;
        } else {
            error = (int)one->value;
        }
    }
    return error;
}

/* The pieces as far as they lie within the store. Returns the bytes in them. */
static uint64_t clip(const struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                     size_t count, struct iovec *vector, size_t *used)
{
    uint64_t left = offset < store->nbytes ? store->nbytes - offset : 0, total = 0;

    *used = 0;
    for (size_t i = 0; i < count && left; i++) {
        uint64_t length = pieces[i].length < left ? pieces[i].length : left;
        vector[(*used)++] = (struct iovec){pieces[i].address, length};
        total += length;
        left -= length;
    }
    return total;
}

/* Skip what a call has transferred. */
static struct iovec *advance(struct iovec *vector, size_t *count, uint64_t done)
{
    while (*count && done >= vector->iov_len) {
        done -= vector->iov_len;
        vector++;
        --*count;
    }
    if (*count) {
        vector->iov_base = (char *)vector->iov_base + done;
        vector->iov_len -= done;
    }
    return vector;
}

/* Set everything from byte `from` of the pieces on to zero. */
static void clear_rest(const struct pg_piece *pieces, size_t count, uint64_t from)
{
    for (size_t i = 0; i < count; i++) {
        if (from < pieces[i].length)
            memset((char *)pieces[i].address + from, 0, pieces[i].length - from);
        from -= from < pieces[i].length ? from : pieces[i].length;
    }
}

static ssize_t read_some(struct pg_store *store, const struct iovec *vector, size_t count,
                         uint64_t offset, int nowait)
{
    if (nowait && !__atomic_load_n(&store->no_nowait, __ATOMIC_RELAXED)) {
        ssize_t got = preadv2(store->fd, vector, (int)count, (off_t)offset, RWF_NOWAIT);
        if (got >= 0 || (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS))
            return got;
        __atomic_store_n(&store->no_nowait, 1, __ATOMIC_RELAXED);
    }
    return preadv(store->fd, vector, (int)count, (off_t)offset);
}

int pg_store_read(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                  size_t count, int nowait)
{
    struct iovec vector[PG_PIECES], *next = vector;
    uint64_t shorten, total, done = 0;
    size_t used;
    int error;

    /* Every read that tests count is one that may wait. */
    if (nowait && store->injection_count)
        return -EAGAIN;
    error = inject(store, PG_OP_READ, &shorten);
    if (error)
        return -error;
    total = clip(store, offset, pieces, count, vector, &used);
    while (done < total) {
        ssize_t got = read_some(store, next, used, store->offset + offset + done, nowait);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            return -PG_SHORT;
        done += (uint64_t)got;
        /* A part was there: the rest is not, or the file ends here, and waiting tells which. */
        if (nowait && done < total)
            return -EAGAIN;
        next = advance(next, &used, (uint64_t)got);
    }
    clear_rest(pieces, count, total);
    return shorten && total ? -PG_SHORT : 0;
}

int pg_store_write(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                   size_t count)
{
    struct iovec vector[PG_PIECES], *next = vector;
    uint64_t shorten, total, done = 0;
    size_t used;
    int error = inject(store, PG_OP_WRITE, &shorten);

    if (error)
        return -error;
    total = clip(store, offset, pieces, count, vector, &used);
    if (shorten && total) {
        /* Less than all of it arrives, and the caller learns that. */
        uint64_t part = shorten < total ? total - shorten : 0;
        if (part && pwrite(store->fd, vector[0].iov_base,
                           part < vector[0].iov_len ? part : vector[0].iov_len,
                           (off_t)(store->offset + offset)) < 0)
            return -errno;
        return -PG_SHORT;
    }
    while (done < total) {
        ssize_t put = pwritev(store->fd, next, (int)used, (off_t)(store->offset + offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put ? -errno : -PG_SHORT;
        done += (uint64_t)put;
        next = advance(next, &used, (uint64_t)put);
    }
    return 0;
}

int pg_store_sync(struct pg_store *store)
{
    uint64_t shorten;
    int error = inject(store, PG_OP_SYNC, &shorten);

    if (error)
        return -error;
    while (fdatasync(store->fd))
        if (errno != EINTR)
            return -errno;
    return 0;
}

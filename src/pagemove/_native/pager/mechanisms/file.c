#define _GNU_SOURCE
#include "pager/mechanisms/file.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pager/mechanisms/holes.h"

/* Bytes: a smaller write waits for the disk longer than it takes to copy it. */
enum { LEAST_DIRECT = 65536 };

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

int pg_file_has_all(const struct pg_store *store)
{
    struct stat status;

    return !fstat(store->fd, &status) && S_ISREG(status.st_mode) &&
           (uint64_t)status.st_size >= store->offset + store->nbytes;
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

static ssize_t read_some(struct pg_store *store, const struct iovec *vector, size_t count,
                         uint64_t offset, int nowait)
{
    if (nowait && !__atomic_load_n(&store->no_nowait, __ATOMIC_RELAXED)) {
        ssize_t got = preadv2(store->fd, vector, (int)count, (off_t)offset, RWF_NOWAIT);
        if (got >= 0 || (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS))
            return got;
        __atomic_store_n(&store->no_nowait, 1, __ATOMIC_RELAXED);
    }
    if (nowait && store->waits) {
        errno = EAGAIN;
        return -1;
    }
    return preadv(store->fd, vector, (int)count, (off_t)offset);
}

/* The bytes [from, from + length) of the pieces. Returns how many vectors they are. */
static size_t part(const struct pg_piece *pieces, size_t count, uint64_t from, uint64_t length,
                   struct iovec *vector)
{
    size_t used = 0;

    for (size_t i = 0; i < count && length; i++) {
        uint64_t some = from < pieces[i].length ? pieces[i].length - from : 0;
        if (some > length)
            some = length;
        if (some)
            vector[used++] = (struct iovec){(char *)pieces[i].address + from, some};
        from -= some ? from : pieces[i].length;
        length -= some;
    }
    return used;
}

int pg_file_read_sparse(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                        size_t count, uint64_t total, uint64_t *got)
{
    uint64_t end = store->offset + store->nbytes, done = 0;
    struct iovec vector[PG_PIECES];

    while (done < total) {
        uint64_t at = store->offset + offset + done, run = total - done;
        int hole = pg_is_hole(store->fd, at, &run, end);
        size_t used = part(pieces, count, done, run, vector);
        ssize_t some = (ssize_t)run;
        if (hole) {
            for (size_t i = 0; i < used; i++)
                memset(vector[i].iov_base, 0, vector[i].iov_len);
        } else {
            some = preadv(store->fd, vector, (int)used, (off_t)at);
            if (some < 0 && errno == EINTR)
                continue;
            if (some <= 0)
                return some ? -errno : -PG_SHORT;
            *got += (uint64_t)some;
        }
        done += (uint64_t)some;
    }
    return 0;
}

int pg_file_read_direct(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                        size_t count, uint64_t total)
{
    struct iovec vector[PG_PIECES];

    for (size_t i = 0; i < count; i++)
        vector[i] = (struct iovec){pieces[i].address, pieces[i].length};
    if (!total || !pg_direct_fits(&store->direct, store->offset + offset, vector, count))
        return -PG_NOT_NOW;
    return pg_direct_read(&store->direct, store->offset + offset, vector, count, total);
}

int pg_file_read(struct pg_store *store, uint64_t offset, struct iovec *vector, size_t used,
                 uint64_t total, int nowait)
{
    uint64_t done = 0;

    while (done < total) {
        ssize_t got = read_some(store, vector, used, store->offset + offset + done, nowait);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return nowait && errno == EAGAIN ? -PG_NOT_NOW : -errno;
        if (got == 0)
            return -PG_SHORT;
        done += (uint64_t)got;
        /* A part was there: the rest is not, or the file ends here, and waiting tells which. */
        if (nowait && done < total)
            return -PG_NOT_NOW;
        vector = advance(vector, &used, (uint64_t)got);
    }
    return 0;
}

int pg_file_write(struct pg_store *store, uint64_t offset, struct iovec *vector, size_t used,
                  uint64_t total)
{
    uint64_t done = 0;
    int direct = total >= LEAST_DIRECT;

    while (done < total) {
        ssize_t put = -PG_NOT_NOW;
        if (direct && pg_direct_fits(&store->past, store->offset + offset + done, vector, used))
            put = pg_direct_write(&store->past, store->offset + offset + done, vector, used);
        if (put == -PG_NOT_NOW)
            direct = 0;
        else if (put < 0)
            return (int)put;
        if (!direct)
            put = pwritev(store->fd, vector, (int)used, (off_t)(store->offset + offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put ? -errno : -PG_SHORT;
        done += (uint64_t)put;
        vector = advance(vector, &used, (uint64_t)put);
    }
    return 0;
}

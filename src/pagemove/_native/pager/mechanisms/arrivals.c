#define _GNU_SOURCE
#include "pager/mechanisms/arrivals.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/unnamed.h"
#include "pager/state/terms.h"

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

enum { VECTORS = 256, ZEROS = 65536 };

/* A new file with room for all of it, which takes none yet. */
static int make_file(const struct pg_arrivals *arrivals)
{
    int fd = arrivals->directory
                 ? pg_open_unnamed(arrivals->directory)
                 : memfd_create("pagemove handed over", MFD_CLOEXEC | MFD_ALLOW_SEALING),
        above;

    if (fd < 0)
        return arrivals->directory ? fd : -errno;
    if (fd < 3) {
        above = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        above = above < 0 ? -errno : above;
        close(fd);
        fd = above;
    }
    if (fd >= 0 && ftruncate(fd, (off_t)arrivals->nbytes)) {
        int error = errno;
        close(fd);
        return -error;
    }
    if (!arrivals->directory && fd >= 0)
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    return fd;
}

int pg_arrivals_open(struct pg_arrivals *arrivals, uint64_t nbytes, uint64_t unit,
                     const char *directory)
{
    pthread_condattr_t monotonic;
    int file;

    *arrivals = (struct pg_arrivals){
        .nbytes = nbytes, .unit = unit, .units = (uint32_t)((nbytes + unit - 1) / unit)};
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&arrivals->lock, NULL);
    pthread_cond_init(&arrivals->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    for (int i = 0; i < PG_ARRIVAL_FILES; i++)
        arrivals->files[i].fd = -1;
    arrivals->missing = arrivals->units;
    arrivals->states = calloc(arrivals->units, 1);
    arrivals->directory = directory ? strdup(directory) : NULL;
    if (!arrivals->states || (directory && !arrivals->directory))
        return -ENOMEM;
    file = pg_arrivals_file(arrivals);
    return file < 0 ? file : 0;
}

void pg_arrivals_close(struct pg_arrivals *arrivals)
{
    for (int i = 0; i < PG_ARRIVAL_FILES; i++)
        if (arrivals->files[i].fd >= 0)
            close(arrivals->files[i].fd);
    free(arrivals->states);
    free(arrivals->directory);
    arrivals->states = NULL;
    arrivals->directory = NULL;
}

int pg_arrivals_file(struct pg_arrivals *arrivals)
{
    int fd = make_file(arrivals), file = -ENFILE;

    if (fd < 0)
        return fd;
    pthread_mutex_lock(&arrivals->lock);
    for (int i = 0; i < PG_ARRIVAL_FILES && file < 0; i++)
        if (arrivals->files[i].fd < 0)
            file = i;
    if (file >= 0) {
        arrivals->files[file].fd = fd;
        arrivals->files[file].held = 1;
    }
    pthread_mutex_unlock(&arrivals->lock);
    if (file < 0)
        close(fd);
    return file;
}

/* Wants the lock. */
static void let_go(struct pg_arrivals *arrivals, int file)
{
    if (--arrivals->files[file].held)
        return;
    close(arrivals->files[file].fd);
    arrivals->files[file].fd = -1;
}

void pg_arrivals_drop_file(struct pg_arrivals *arrivals, int file)
{
    pthread_mutex_lock(&arrivals->lock);
    let_go(arrivals, file);
    pthread_mutex_unlock(&arrivals->lock);
}

struct pg_units pg_units_of(const struct pg_arrivals *arrivals, uint64_t offset, uint64_t length)
{
    return (struct pg_units){(uint32_t)(offset / arrivals->unit),
                             (uint32_t)((offset + length - 1) / arrivals->unit + 1)};
}

uint64_t pg_units_at(const struct pg_arrivals *arrivals, struct pg_units run, uint64_t *length)
{
    uint64_t start = run.first * arrivals->unit, stop = run.end * arrivals->unit;

    *length = (stop < arrivals->nbytes ? stop : arrivals->nbytes) - start;
    return start;
}

/* Have the first run of units in one of two states be in another. Wants the lock. */
static int turn(struct pg_arrivals *arrivals, struct pg_units among, uint32_t most, int also,
                uint8_t state, struct pg_units *run)
{
    const uint8_t *states = arrivals->states;
    uint32_t at = among.first;

    while (at < among.end && states[at] != PG_MISSING && states[at] != also)
        at++;
    run->first = at;
    while (at < among.end && at - run->first < most &&
           (states[at] == PG_MISSING || states[at] == also))
        arrivals->states[at++] = state;
    run->end = at;
    return run->end > run->first;
}

int pg_ask_units(struct pg_arrivals *arrivals, struct pg_units among, uint32_t most,
                 struct pg_units *run)
{
    int found;

    pthread_mutex_lock(&arrivals->lock);
    found = turn(arrivals, among, most, PG_MISSING, PG_ASKED, run);
    pthread_mutex_unlock(&arrivals->lock);
    return found;
}

void pg_unask_units(struct pg_arrivals *arrivals, struct pg_units run)
{
    pthread_mutex_lock(&arrivals->lock);
    for (uint32_t at = run.first; at < run.end; at++)
        if (arrivals->states[at] == PG_ASKED)
            arrivals->states[at] = PG_MISSING;
    pthread_cond_broadcast(&arrivals->changed);
    pthread_mutex_unlock(&arrivals->lock);
}

int pg_claim_units(struct pg_arrivals *arrivals, struct pg_units among, uint32_t most, int asked,
                   struct pg_units *run)
{
    int found;

    pthread_mutex_lock(&arrivals->lock);
    found = turn(arrivals, among, most, asked ? PG_ASKED : PG_MISSING, PG_UNDER_WAY, run);
    pthread_mutex_unlock(&arrivals->lock);
    return found;
}

void pg_land_units(struct pg_arrivals *arrivals, struct pg_units run, int file)
{
    pthread_mutex_lock(&arrivals->lock);
    memset(arrivals->states + run.first, PG_HERE + file, run.end - run.first);
    arrivals->files[file].held += run.end - run.first;
    __atomic_sub_fetch(&arrivals->missing, run.end - run.first, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&arrivals->changed);
    pthread_mutex_unlock(&arrivals->lock);
}

void pg_drop_units(struct pg_arrivals *arrivals, struct pg_units run)
{
    pthread_mutex_lock(&arrivals->lock);
    memset(arrivals->states + run.first, PG_MISSING, run.end - run.first);
    pthread_cond_broadcast(&arrivals->changed);
    pthread_mutex_unlock(&arrivals->lock);
}

/* How many units of a run are in a state. Wants the lock. */
static int has(const struct pg_arrivals *arrivals, struct pg_units run, uint8_t state)
{
    return memchr(arrivals->states + run.first, state, run.end - run.first) != NULL;
}

static int are_here(const struct pg_arrivals *arrivals, struct pg_units run)
{
    return !has(arrivals, run, PG_MISSING) && !has(arrivals, run, PG_ASKED) &&
           !has(arrivals, run, PG_UNDER_WAY);
}

int pg_units_are_here(struct pg_arrivals *arrivals, struct pg_units run)
{
    int here;

    if (!__atomic_load_n(&arrivals->missing, __ATOMIC_ACQUIRE))
        return 1;
    pthread_mutex_lock(&arrivals->lock);
    here = are_here(arrivals, run);
    pthread_mutex_unlock(&arrivals->lock);
    return here;
}

int pg_await_units(struct pg_arrivals *arrivals, struct pg_units run, uint64_t deadline,
                   uint64_t overdue, const int *stopping)
{
    int error = 0;

    pthread_mutex_lock(&arrivals->lock);
    for (;;) {
        uint64_t now = pg_now(), until = deadline;
        int asked = now < overdue && has(arrivals, run, PG_ASKED);
        if (!asked && !has(arrivals, run, PG_UNDER_WAY))
            break;
        error = __atomic_load_n(stopping, __ATOMIC_ACQUIRE) ? -ECANCELED
                : now >= deadline                           ? -ETIMEDOUT
                                                            : 0;
        if (error)
            break;
        if (asked && overdue < until)
            until = overdue;
        pg_wait_until(&arrivals->changed, &arrivals->lock, until);
    }
    pthread_mutex_unlock(&arrivals->lock);
    return error;
}

void pg_arrival_bits(struct pg_arrivals *arrivals, uint8_t *bits)
{
    memset(bits, 0, (arrivals->units + 7) / 8);
    pthread_mutex_lock(&arrivals->lock);
    for (uint32_t at = 0; at < arrivals->units; at++)
        if (arrivals->states[at] >= PG_HERE)
            bits[at / 8] |= (uint8_t)(1 << at % 8);
    pthread_mutex_unlock(&arrivals->lock);
}

/* The part [from, from + length) of a vector, as far as it fits. Returns the pieces, and in
 * `length` the bytes of them. */
static size_t part(const struct iovec *vector, size_t count, uint64_t from, uint64_t *length,
                   struct iovec found[VECTORS])
{
    uint64_t left = *length;
    size_t used = 0;

    for (size_t i = 0; i < count && left && used < VECTORS; i++) {
        uint64_t some = from < vector[i].iov_len ? vector[i].iov_len - from : 0;
        if (some > left)
            some = left;
        if (some)
            found[used++] = (struct iovec){(char *)vector[i].iov_base + from, some};
        from -= some ? from : vector[i].iov_len;
        left -= some;
    }
    *length -= left;
    return used;
}

/* How many bytes from an offset on are in the same file, and that. What is here stays there. */
static int file_at(const struct pg_arrivals *arrivals, uint64_t offset, uint64_t *length)
{
    struct pg_units run = pg_units_of(arrivals, offset, *length);
    uint8_t state = __atomic_load_n(&arrivals->states[run.first], __ATOMIC_RELAXED);
    uint32_t end = run.first + 1;
    uint64_t stop;

    while (end < run.end && __atomic_load_n(&arrivals->states[end], __ATOMIC_RELAXED) == state)
        end++;
    stop = end * arrivals->unit - offset;
    if (*length > stop)
        *length = stop;
    return arrivals->files[state - PG_HERE].fd;
}

enum direction { READ, READ_NOW, WRITE };

static int transfer(struct pg_arrivals *arrivals, enum direction direction, uint64_t offset,
                    const struct iovec *vector, size_t count, uint64_t total)
{
    struct iovec some[VECTORS];
    uint64_t done = 0;

    while (done < total) {
        uint64_t length = total - done;
        off_t at = (off_t)(offset + done);
        int fd = file_at(arrivals, offset + done, &length);
        int used = (int)part(vector, count, done, &length, some);
        ssize_t moved = direction == WRITE  ? pwritev(fd, some, used, at)
                        : direction == READ ? preadv(fd, some, used, at)
                                            : preadv2(fd, some, used, at, RWF_NOWAIT);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved < (direction == READ_NOW ? (ssize_t)length : 1))
            return direction == READ_NOW ? -PG_NOT_NOW : moved < 0 ? -errno : -PG_SHORT;
        done += (uint64_t)moved;
    }
    return 0;
}

int pg_arrivals_read(struct pg_arrivals *arrivals, uint64_t offset, const struct iovec *vector,
                     size_t count, uint64_t total, int nowait)
{
    return transfer(arrivals, nowait ? READ_NOW : READ, offset, vector, count, total);
}

int pg_arrivals_write(struct pg_arrivals *arrivals, uint64_t offset, const struct iovec *vector,
                      size_t count, uint64_t total)
{
    return transfer(arrivals, WRITE, offset, vector, count, total);
}

int pg_arrivals_fill(struct pg_arrivals *arrivals, struct pg_units run, const struct iovec *vector,
                     size_t count, uint64_t from)
{
    static char zeros[ZEROS];
    uint64_t length, at = pg_units_at(arrivals, run, &length), done = 0;

    /* A hole of the file is zero. */
    if (!vector && !__atomic_load_n(&arrivals->spoilt, __ATOMIC_ACQUIRE))
        return 0;
    while (done < length) {
        struct iovec some[VECTORS] = {{zeros, length - done < ZEROS ? length - done : ZEROS}};
        uint64_t left = length - done;
        int used = vector ? (int)part(vector, count, from + done, &left, some) : 1;
        ssize_t put = pwritev(arrivals->files[0].fd, some, used, (off_t)(at + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            __atomic_store_n(&arrivals->spoilt, 1, __ATOMIC_RELEASE);
            return put ? -errno : -EIO;
        }
        done += (uint64_t)put;
    }
    return 0;
}

int pg_arrivals_sync(struct pg_arrivals *arrivals)
{
    for (int i = 0; i < PG_ARRIVAL_FILES; i++) {
        int fd, error = 0;
        pthread_mutex_lock(&arrivals->lock);
        /* None is closed that has units. */
        fd = arrivals->files[i].held ? arrivals->files[i].fd : -1;
        arrivals->files[i].held += fd >= 0;
        pthread_mutex_unlock(&arrivals->lock);
        while (fd >= 0 && fdatasync(fd) && !error)
            error = errno == EINTR ? 0 : errno;
        if (fd >= 0)
            pg_arrivals_drop_file(arrivals, i);
        if (error)
            return -error;
    }
    return 0;
}

#define _GNU_SOURCE
#include "pager/mechanisms/spilled.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "descriptors.h"
#include "pager/mechanisms/unnamed.h"
#include "pager/state/terms.h"

static struct pg_spill without_file(void)
{
    return (struct pg_spill){.fd = -1, .lent = -1};
}

static void close_file(struct pg_spill *spill)
{
    if (spill->fd >= 0)
        close(spill->fd);
    free(spill->unused.at);
    free(spill->left.at);
    *spill = without_file();
}

void pg_spills_init(struct pg_spills *spills, const char *directory, uint64_t block_size)
{
    *spills = (struct pg_spills){.directory = directory, .block_size = block_size};
    for (unsigned i = 0; i < PG_SPILLS; i++)
        spills->files[i] = without_file();
}

void pg_spills_begin(struct pg_spills *spills, int first)
{
    spills->files[0].fd = first;
    spills->files[0].own = 1;
}

void pg_spills_free(struct pg_spills *spills)
{
    for (unsigned i = 0; i < PG_SPILLS; i++)
        close_file(&spills->files[i]);
}

/* Places. */

static off_t offset_of(const struct pg_spills *spills, uint32_t place)
{
    return (off_t)(place * spills->block_size);
}

static void empty(const struct pg_spills *spills, const struct pg_spill *spill, uint32_t place,
                  uint32_t count)
{
    fallocate(spill->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_of(spills, place),
              (off_t)(count * spills->block_size));
}

/* What has no memory for its number is not used again before the file is empty. */
static void note_place(struct pg_places *places, uint32_t place)
{
    uint32_t room = places->room ? 2 * places->room : 64;

    if (places->count == places->room) {
        uint32_t *larger = realloc(places->at, room * sizeof *larger);
        if (!larger)
            return;
        places->at = larger;
        places->room = room;
    }
    places->at[places->count++] = place;
}

/* Whether no other process has a file. The kernel gives a lease for writing to whoever is alone
 * with it; should another open it in this very moment, the signal that says so is one that is
 * ignored. */
static int is_alone(int fd)
{
    if (fcntl(fd, F_SETSIG, SIGURG) || fcntl(fd, F_SETLEASE, F_WRLCK))
        return 0;
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return 1;
}

static int by_number(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;

    return (a > b) - (a < b);
}

/* Have all of a file that this process is alone with, and give back what is for nobody there. */
static void take_over(const struct pg_spills *spills, struct pg_spill *spill)
{
    struct pg_places *left = &spill->left;

    spill->own = 1;
    spill->frozen = 0;
    if (left->count)
        qsort(left->at, left->count, sizeof *left->at, by_number);
    for (uint32_t first = 0, end; first < left->count; first = end) {
        for (end = first + 1; end < left->count && left->at[end] == left->at[end - 1] + 1; end++)
            ;
        empty(spills, spill, left->at[first], end - first);
        for (uint32_t i = first; i < end; i++)
            note_place(&spill->unused, left->at[i]);
    }
    left->count = 0;
}

void pg_spills_thaw(struct pg_spills *spills)
{
    for (unsigned i = 0; i < PG_SPILLS; i++) {
        struct pg_spill *spill = &spills->files[i];
        if (spill->fd >= 0 && (!spill->own || spill->left.count) && is_alone(spill->fd))
            take_over(spills, spill);
    }
}

/* A file of this process, if it can be with a place that there is already; or -1. */
static int find_own(const struct pg_spills *spills)
{
    int found = -1;

    for (int i = 0; i < PG_SPILLS; i++) {
        const struct pg_spill *spill = &spills->files[i];
        if (spill->fd < 0 || !spill->own)
            continue;
        if (spill->unused.count)
            return i;
        found = found < 0 ? i : found;
    }
    return found;
}

/* A file that can be written to. Its number, or -errno. */
static int find_or_make(struct pg_spills *spills)
{
    int found = find_own(spills), fd;

    if (found >= 0 && spills->files[found].unused.count)
        return found;
    pg_spills_thaw(spills);
    found = find_own(spills);
    if (found >= 0)
        return found;
    for (int i = 0; i < PG_SPILLS && found < 0; i++)
        if (spills->files[i].fd < 0)
            found = i;
    if (found < 0)
        return -EMFILE;
    fd = pg_open_unnamed(spills->directory);
    if (fd < 0)
        return fd;
    spills->files[found].fd = fd;
    spills->files[found].own = 1;
    return found;
}

int pg_take_place(struct pg_spills *spills, struct pg_spilled *at)
{
    int found = find_or_make(spills);
    struct pg_spill *spill;

    if (found < 0)
        return found;
    spill = &spills->files[found];
    at->file = (uint8_t)found;
    at->place = spill->unused.count ? spill->unused.at[--spill->unused.count] : spill->end++;
    spill->used++;
    return 0;
}

int pg_is_own_place(const struct pg_spills *spills, struct pg_spilled at)
{
    const struct pg_spill *spill = &spills->files[at.file];

    return spill->own && at.place >= spill->frozen;
}

void pg_give_place(struct pg_spills *spills, struct pg_spilled at)
{
    struct pg_spill *spill = &spills->files[at.file];

    note_place(at.place < spill->frozen ? &spill->left : &spill->unused, at.place);
    if (--spill->used)
        return;
    if (!spill->own) {
        close_file(spill);
        return;
    }
    if (spill->frozen && !is_alone(spill->fd))
        return;
    spill->end = spill->frozen = spill->unused.count = spill->left.count = 0;
    if (ftruncate(spill->fd, 0))
        return; /* its places are written over */
}

/* Bytes. */

int pg_read_spilled(const struct pg_spills *spills, struct pg_spilled at, char *to, int nowait)
{
    int fd = spills->files[at.file].fd;
    off_t start = offset_of(spills, at.place);

    for (uint64_t done = 0; done < spills->block_size;) {
        struct iovec rest = {to + done, spills->block_size - done};
        ssize_t got = preadv2(fd, &rest, 1, start + (off_t)done, nowait ? RWF_NOWAIT : 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (nowait && (got < 0 || (uint64_t)got < rest.iov_len))
            return -PG_NOT_NOW;
        if (got <= 0)
            return got ? -errno : -EIO;
        done += (uint64_t)got;
    }
    return 0;
}

int pg_write_spilled(const struct pg_spills *spills, struct pg_spilled at, const char *bytes)
{
    int fd = spills->files[at.file].fd;
    off_t start = offset_of(spills, at.place);

    for (uint64_t done = 0; done < spills->block_size;) {
        ssize_t put = pwrite(fd, bytes + done, spills->block_size - done, start + (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put ? -errno : -EIO;
        done += (uint64_t)put;
    }
    return 0;
}

void pg_empty_spilled(const struct pg_spills *spills, struct pg_spilled at)
{
    empty(spills, &spills->files[at.file], at.place, 1);
}

uint64_t pg_room_to_spill(const struct pg_spills *spills)
{
    uint64_t room = pg_room_in(spills->directory);
    struct rlimit most;
    int found = find_own(spills);
    uint64_t used = found < 0 ? 0 : spills->files[found].used * spills->block_size;

    if (getrlimit(RLIMIT_FSIZE, &most) || most.rlim_cur == RLIM_INFINITY)
        return room;
    most.rlim_cur = most.rlim_cur > used ? most.rlim_cur - used : 0;
    return most.rlim_cur < room ? most.rlim_cur : room;
}

/* Forks. */

void pg_spills_freeze(struct pg_spills *spills)
{
    pg_spills_thaw(spills);
    for (unsigned i = 0; i < PG_SPILLS; i++) {
        struct pg_spill *spill = &spills->files[i];
        /* What was unused is not to be written by both. */
        for (uint32_t k = 0; k < spill->unused.count; k++)
            note_place(&spill->left, spill->unused.at[k]);
        spill->unused.count = 0;
        spill->frozen = spill->end;
    }
}

int pg_spills_lend(struct pg_spills *spills, pid_t owner)
{
    char path[64];

    for (unsigned i = 0; i < PG_SPILLS; i++) {
        struct pg_spill *spill = &spills->files[i];
        if (!spill->used)
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%d/fd/%d", (int)owner, spill->fd);
        /* For writing, so that the lease knows of it. */
        spill->lent = pm_keep(open(path, O_RDWR | O_CLOEXEC));
        if (spill->lent < 0)
            return spill->lent;
    }
    return 0;
}

void pg_spills_take_back(struct pg_spills *spills)
{
    for (unsigned i = 0; i < PG_SPILLS; i++)
        if (spills->files[i].lent >= 0) {
            close(spills->files[i].lent);
            spills->files[i].lent = -1;
        }
}

void pg_spills_accept(struct pg_spills *spills)
{
    for (unsigned i = 0; i < PG_SPILLS; i++) {
        struct pg_spill *spill = &spills->files[i];
        spill->fd = spill->lent;
        spill->own = 0;
        if (spill->fd < 0)
            close_file(spill);
    }
}

size_t pg_spills_descriptors(const struct pg_spills *spills, int fds[PG_SPILLS])
{
    size_t count = 0;

    for (unsigned i = 0; i < PG_SPILLS; i++)
        if (spills->files[i].fd >= 0)
            fds[count++] = spills->files[i].fd;
    return count;
}

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
    free(spill->free);
    *spill = without_file();
}

void pg_spills_init(struct pg_spills *spills, const char *directory, uint64_t block_size, int first)
{
    *spills = (struct pg_spills){.directory = directory, .block_size = block_size};
    for (unsigned i = 0; i < PG_SPILLS; i++)
        spills->files[i] = without_file();
    spills->files[0].fd = first;
}

void pg_spills_free(struct pg_spills *spills)
{
    for (unsigned i = 0; i < PG_SPILLS; i++)
        close_file(&spills->files[i]);
}

/* Places. */

static off_t offset_of(const struct pg_spills *spills, struct pg_spilled at)
{
    return (off_t)(at.place * spills->block_size);
}

static int is_open(const struct pg_spill *spill)
{
    return spill->fd >= 0 && !spill->frozen;
}

/* Whether no other process has a file. The kernel gives a lease for writing to whoever is alone
 * with it; should another open it in this very moment, the signal that says so is one that is
 * ignored. */
static int is_ours(int fd)
{
    if (fcntl(fd, F_SETSIG, SIGURG) || fcntl(fd, F_SETLEASE, F_WRLCK))
        return 0;
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return 1;
}

/* Those whose children have ended may be written to again. */
static void thaw(struct pg_spills *spills)
{
    for (unsigned i = 0; i < PG_SPILLS; i++) {
        struct pg_spill *spill = &spills->files[i];
        if (!spill->frozen || !is_ours(spill->fd))
            continue;
        spill->frozen = 0;
        for (uint32_t k = 0; k < spill->free_count; k++)
            pg_empty_spilled(spills, (struct pg_spilled){spill->free[k], (uint8_t)i});
    }
}

static int find_open(const struct pg_spills *spills)
{
    for (int i = 0; i < PG_SPILLS; i++)
        if (is_open(&spills->files[i]))
            return i;
    return -1;
}

/* A file that can be written to. Its number, or -errno. */
static int find_or_make(struct pg_spills *spills)
{
    int found = find_open(spills), fd;

    if (found >= 0)
        return found;
    thaw(spills);
    found = find_open(spills);
    for (int i = 0; i < PG_SPILLS && found < 0; i++)
        if (spills->files[i].fd < 0)
            found = i;
    if (found < 0)
        return -EMFILE;
    if (spills->files[found].fd >= 0)
        return found;
    fd = pg_open_unnamed(spills->directory);
    if (fd < 0)
        return fd;
    spills->files[found].fd = fd;
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
    at->place = spill->free_count ? spill->free[--spill->free_count] : spill->end++;
    spill->used++;
    return 0;
}

/* What has no memory for its number is not used again before the file is empty. */
static void note_free(struct pg_spill *spill, uint32_t place)
{
    uint32_t room = spill->free_room ? 2 * spill->free_room : 64;

    if (spill->free_count == spill->free_room) {
        uint32_t *larger = realloc(spill->free, room * sizeof *larger);
        if (!larger)
            return;
        spill->free = larger;
        spill->free_room = room;
    }
    spill->free[spill->free_count++] = place;
}

void pg_give_place(struct pg_spills *spills, struct pg_spilled at)
{
    struct pg_spill *spill = &spills->files[at.file];

    note_free(spill, at.place);
    if (--spill->used)
        return;
    if (find_open(spills) != (int)at.file) {
        close_file(spill); /* others read it, or another is written to */
        return;
    }
    spill->end = spill->free_count = 0;
    if (ftruncate(spill->fd, 0))
        return; /* its places are written over */
}

/* Bytes. */

int pg_read_spilled(const struct pg_spills *spills, struct pg_spilled at, char *to, int nowait)
{
    int fd = spills->files[at.file].fd;
    off_t start = offset_of(spills, at);

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
    off_t start = offset_of(spills, at);

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
    const struct pg_spill *spill = &spills->files[at.file];

    if (!spill->frozen)
        fallocate(spill->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_of(spills, at),
                  (off_t)spills->block_size);
}

uint64_t pg_room_to_spill(const struct pg_spills *spills)
{
    uint64_t room = pg_room_in(spills->directory);
    struct rlimit most;
    int found = find_open(spills);
    uint64_t used = found < 0 ? 0 : spills->files[found].used * spills->block_size;

    if (getrlimit(RLIMIT_FSIZE, &most) || most.rlim_cur == RLIM_INFINITY)
        return room;
    most.rlim_cur = most.rlim_cur > used ? most.rlim_cur - used : 0;
    return most.rlim_cur < room ? most.rlim_cur : room;
}

/* Forks. */

void pg_spills_freeze(struct pg_spills *spills)
{
    thaw(spills);
    for (unsigned i = 0; i < PG_SPILLS; i++)
        spills->files[i].frozen = spills->files[i].fd >= 0 && spills->files[i].used;
}

int pg_spills_lend(struct pg_spills *spills, pid_t owner)
{
    char path[64];

    for (unsigned i = 0; i < PG_SPILLS; i++) {
        struct pg_spill *spill = &spills->files[i];
        if (!spill->frozen)
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
        if (spill->fd >= 0)
            continue;
        free(spill->free);
        *spill = without_file();
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

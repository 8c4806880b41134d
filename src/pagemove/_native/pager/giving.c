#define _GNU_SOURCE
#include "pager/giving.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pager/mechanisms/greeting.h"
#include "pager/pager.h"
#include "pager/sending.h"

struct pg_giver *pg_giver_new(struct pg_region *region, uint64_t address, uint64_t nbytes,
                              uint64_t unit)
{
    struct pg_giver *giver = calloc(1, sizeof *giver);

    if (!giver)
        return NULL;
    *giver = (struct pg_giver){.region = region,
                               .flat = (const char *)(uintptr_t)address,
                               .nbytes = nbytes,
                               .unit = unit,
                               .offset = address - pg_address(region),
                               .units = (uint32_t)((nbytes + unit - 1) / unit)};
    pthread_mutex_init(&giver->lock, NULL);
    giver->missing = giver->units;
    giver->acknowledged = calloc(giver->units, 1);
    if (giver->acknowledged)
        return giver;
    free(giver);
    return NULL;
}

void pg_giver_free(struct pg_giver *giver)
{
    free(giver->acknowledged);
    free(giver);
}

void pg_giver_switched(struct pg_giver *giver, uint64_t dirty, uint64_t bytes_written)
{
    giver->dirty = dirty;
    giver->bytes_written = bytes_written;
    __atomic_store_n(&giver->asked, 0, __ATOMIC_RELEASE);
}

int pg_giver_was_asked(const struct pg_giver *giver)
{
    return __atomic_load_n(&giver->asked, __ATOMIC_ACQUIRE);
}

uint32_t pg_giver_missing(const struct pg_giver *giver)
{
    return __atomic_load_n(&giver->missing, __ATOMIC_ACQUIRE);
}

uint64_t pg_giver_sent(const struct pg_giver *giver)
{
    return __atomic_load_n(&giver->sent, __ATOMIC_RELAXED);
}

int pg_giver_is_broken(const struct pg_giver *giver)
{
    return __atomic_load_n(&giver->broken, __ATOMIC_ACQUIRE);
}

void pg_giver_acknowledged(struct pg_giver *giver, uint8_t *units)
{
    pthread_mutex_lock(&giver->lock);
    memcpy(units, giver->acknowledged, giver->units);
    pthread_mutex_unlock(&giver->lock);
}

/* Note which units are with the other side. Wants no lock. */
static void acknowledge(struct pg_giver *giver, struct pg_peer *to, uint32_t first, uint32_t count,
                        const uint8_t *bits)
{
    uint32_t before, now;

    pthread_mutex_lock(&giver->lock);
    before = now = giver->missing;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t unit = first + i;
        if ((bits && !(bits[unit / 8] >> unit % 8 & 1)) || giver->acknowledged[unit])
            continue;
        giver->acknowledged[unit] = 1;
        now--;
    }
    __atomic_store_n(&giver->missing, now, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&giver->lock);
    to->notice |= before && !now;
}

static int hear_what_is_there(struct pg_giver *giver, struct pg_peer *to, uint64_t length)
{
    struct pg_wire_request none = {.kind = PG_HAVE};
    uint8_t *bits;
    int error;

    if (length != (giver->units + UINT64_C(7)) / 8)
        return -EPROTO;
    bits = malloc(length);
    error = bits ? pg_wire_receive(&to->wire, bits, length) : -ENOMEM;
    if (!error)
        acknowledge(giver, to, 0, giver->units, bits);
    free(bits);
    none.first = pg_giver_missing(giver);
    return error ? error : pg_answer(to, PG_HAVE, 0, none, 0);
}

/* The descriptor that came along; -1: none. Of several, which nobody has asked for, the first. */
static int passed_by(struct msghdr *message)
{
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    int passed = -1;

    if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
        return passed;
    for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= header->cmsg_len; at += sizeof(int)) {
        int one;
        memcpy(&one, CMSG_DATA(header) + at, sizeof one);
        if (at)
            close(one);
        else
            passed = one;
    }
    return passed;
}

/* A request, and the descriptor that came along. */
static int receive(const struct pg_peer *to, struct pg_wire_request *request, int *passed)
{
    struct pg_wire patient = to->wire;
    struct iovec vector = {request, sizeof *request};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } space;
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = space.bytes,
                             .msg_controllen = sizeof space.bytes};
    ssize_t got;
    int error;

    *passed = -1;
    /* It may have nothing to ask for long. */
    patient.patience = UINT64_MAX;
    do {
        error = pg_wire_wait(&patient, POLLIN);
        got = error ? 0 : recvmsg(to->wire.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (!error && got < 0 && (errno == EINTR || errno == EAGAIN));
    if (error || got <= 0)
        return error ? error : got ? -errno : -ECONNRESET;
    *passed = passed_by(&message);
    return pg_wire_receive(&to->wire, (char *)request + got, sizeof *request - (size_t)got);
}

/* Take a file for the bytes: one of who could have it otherwise. Anything else may never end. */
static int take_file(struct pg_peer *to, int *passed)
{
    struct pg_wire_request none = {.kind = PG_FILE};
    struct stat status;
    int error = -EOPNOTSUPP;

    to->text[0] = 0;
    if (*passed >= 0 && to->file < 0 && pg_is_trusted(to->wire.fd) && !fstat(*passed, &status) &&
        S_ISREG(status.st_mode)) {
        to->file = *passed;
        *passed = -1;
        error = 0;
    }
    return pg_answer(to, PG_FILE, error, none, 0);
}

static int reply(struct pg_giver *giver, struct pg_peer *to, struct pg_wire_request asked,
                 int *passed)
{
    int is_within =
        asked.count && asked.count <= giver->units && asked.first <= giver->units - asked.count;
    uint64_t start = asked.first * giver->unit, stop = start + asked.count * giver->unit;

    if (asked.kind == PG_HAVE)
        return hear_what_is_there(giver, to, asked.count);
    if (asked.kind == PG_FILE)
        return take_file(to, passed);
    if (asked.kind == PG_ORDER)
        return PG_NEED_ORDER;
    if (!is_within || (asked.kind != PG_ASK_READ && asked.kind != PG_ACKNOWLEDGE))
        return -EPROTO;
    if (asked.kind == PG_ACKNOWLEDGE) {
        acknowledge(giver, to, (uint32_t)asked.first, (uint32_t)asked.count, NULL);
        return 0;
    }
    stop = stop < giver->nbytes ? stop : giver->nbytes;
    return pg_give_units(giver, to, asked, start, stop);
}

int pg_giver_serve(struct pg_giver *giver, int fd, int *file, uint64_t patience)
{
    struct pg_peer to = {.wire = {.fd = fd, .patience = patience, .deadline = UINT64_MAX},
                         .file = *file};
    int done = 0;

    while (!done && !to.notice) {
        struct pg_wire_request asked;
        int passed;
        done = receive(&to, &asked, &passed);
        if (!done) {
            __atomic_store_n(&giver->asked, 1, __ATOMIC_RELEASE);
            done = reply(giver, &to, asked, &passed);
        }
        if (passed >= 0)
            close(passed);
    }
    *file = to.file;
    return done ? done : PG_NEED_NOTICE;
}

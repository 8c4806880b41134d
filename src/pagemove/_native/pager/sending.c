#define _GNU_SOURCE
#include "pager/sending.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pager/engine/region.h"
#include "pager/pager.h"

enum {
    PIECE = 1 << 20,
    SURE = 64,
    PAGE = 4096,
    TRIES = 100, /* to copy a block before it has left again */
};

int pg_check_unchanged(struct pg_giver *giver, struct pg_peer *to)
{
    struct pg_counters now;

    pg_counters(giver->region, &now);
    if (now.dirty == giver->dirty && now.bytes_written == giver->bytes_written)
        return 0;
    to->notice |= !__atomic_exchange_n(&giver->broken, 1, __ATOMIC_ACQ_REL);
    strcpy(to->text, "it was written here after the other process had taken it, by a view that was "
                     "made earlier");
    return -EBUSY;
}

static int is_zero(const char *bytes, uint64_t length)
{
    /* Nearly all that is not zero shows that at once. */
    for (uint64_t i = 0; i < length && i < SURE; i++)
        if (bytes[i])
            return 0;
    return length <= SURE || !memcmp(bytes, bytes + SURE, length - SURE);
}

static struct pg_run blocks_of(const struct pg_giver *giver, uint64_t at, uint64_t length)
{
    uint64_t block = giver->region->block_size, begin = giver->offset + at;
    uint32_t first = (uint32_t)(begin / block);

    return (struct pg_run){first, (uint32_t)((begin + length - 1) / block) + 1 - first};
}

/* Bytes that are held at once: others want to pin some, too. */
static uint64_t step_of(const struct pg_giver *giver)
{
    uint64_t quarter = pg_pinnable(giver->region) / 4, block = giver->region->block_size;
    uint64_t most = quarter > block ? quarter - block : 0;

    most = most < PIECE ? most : PIECE;
    return most < PAGE ? PAGE : most;
}

/* Bytes of the array that stay while they are sent. */
struct held {
    const char *bytes;
    uint64_t length;
    struct pg_run run; /* none: it is a copy */
    char *copy;
};

/* Copy what there is no room to pin. The kernel does, for it says of a block that cannot be read
 * that it is so, and raises no signal. Where it does not wait for blocks it is had before; that may
 * have left again. */
static int copy(struct pg_giver *giver, uint64_t at, struct held *held)
{
    struct iovec from = {(void *)(uintptr_t)held->bytes, held->length}, to;
    ssize_t got = -1;
    int error = 0;

    held->copy = malloc(held->length);
    if (!held->copy)
        return -ENOMEM;
    to = (struct iovec){held->copy, held->length};
    for (int i = 0; i < TRIES && !error && got != (ssize_t)held->length; i++) {
        if (i)
            error = pg_prefetch_unasked(giver->region, giver->offset + at, held->length);
        got = error ? -1 : process_vm_readv(getpid(), &to, 1, &from, 1, 0);
        if (got < 0 && !error && errno != EFAULT)
            error = -errno;
    }
    held->bytes = held->copy;
    return error || got == (ssize_t)held->length ? error : -EIO;
}

/* Of the bytes from `at` on as many as can be held at once, and at most so many. */
static int hold(struct pg_giver *giver, struct pg_peer *to, uint64_t at, uint64_t most,
                struct held *held)
{
    uint64_t block = giver->region->block_size, left = block - (giver->offset + at) % block;
    int error = pg_check_unchanged(giver, to);
    struct pg_run run = blocks_of(giver, at, most);

    *held = (struct held){.bytes = giver->flat + at, .length = most};
    if (error)
        return error;
    error = pg_pin_unasked(giver->region, &run, 1);
    if (!error)
        held->run = run;
    if (error == -PG_NO_ROOM) {
        /* Others pin too many, or the limit is that of a few blocks. */
        held->length = most < left ? most : left;
        error = copy(giver, at, held);
    }
    if (error) {
        error = -pg_errno_of(-error);
        strcpy(to->text, "it cannot read it: ");
        strncat(to->text, strerror(-error), PG_WHY - 32);
    }
    return error;
}

static void release(struct pg_giver *giver, const struct held *held)
{
    if (held->run.count)
        pg_unpin(giver->region, &held->run, 1);
    free(held->copy);
}

/* Put bytes into the other side's file. */
static int put(struct pg_peer *to, const struct held *held, uint64_t at)
{
    uint64_t done = 0;

    while (done < held->length) {
        ssize_t some =
            pwrite(to->file, held->bytes + done, held->length - done, (off_t)(at + done));
        if (some < 0 && errno == EINTR)
            continue;
        if (some <= 0) {
            int error = some ? errno : EIO;
            strcpy(to->text, "it cannot write to the file of the taker: ");
            strncat(to->text, strerror(error), PG_WHY - 64);
            return -error;
        }
        done += (uint64_t)some;
    }
    return 0;
}

int pg_answer(const struct pg_peer *to, int kind, int error, struct pg_wire_request asked,
              uint64_t length)
{
    struct pg_wire_answer head = {.kind = (uint8_t)kind,
                                  .error = -error,
                                  .first = asked.first,
                                  .count = asked.count,
                                  .length = error ? strlen(to->text) : length};
    int failed = pg_wire_send(&to->wire, &head, sizeof head);

    return failed || !error ? failed : pg_wire_send(&to->wire, to->text, head.length);
}

/* Say whether what was sent is what the array had at the switch. */
static int judge(struct pg_giver *giver, struct pg_peer *to, int error)
{
    struct pg_wire_verdict verdict;
    int failed;

    if (!error)
        error = pg_check_unchanged(giver, to);
    verdict = (struct pg_wire_verdict){-error, error ? (uint32_t)strlen(to->text) : 0};
    failed = pg_wire_send(&to->wire, &verdict, sizeof verdict);
    return failed || !error ? failed : pg_wire_send(&to->wire, to->text, verdict.length);
}

/* Put units into the file of the other side, and say so. 0, or -errno: the connection is broken. */
static int put_units(struct pg_giver *giver, struct pg_peer *to, struct pg_wire_request asked,
                     uint64_t start, uint64_t stop)
{
    uint64_t step = step_of(giver);
    int error = 0, failed, zero = 0;
    struct held held;

    for (uint64_t at = start; at < stop && !error && !zero; at += held.length) {
        error = hold(giver, to, at, stop - at < step ? stop - at : step, &held);
        zero = !error && held.length == stop - start && is_zero(held.bytes, held.length);
        if (!error && !zero)
            error = put(to, &held, at);
        release(giver, &held);
    }
    if (error)
        return pg_answer(to, PG_IN_FILE, error, asked, 0);
    if (!zero)
        __atomic_add_fetch(&giver->sent, stop - start, __ATOMIC_RELAXED);
    failed = pg_answer(to, zero ? PG_ZEROS : PG_IN_FILE, 0, asked, zero ? 0 : stop - start);
    return failed ? failed : judge(giver, to, 0);
}

/* Send units, without a copy of them in between. The same. */
static int send_units(struct pg_giver *giver, struct pg_peer *to, struct pg_wire_request asked,
                      uint64_t start, uint64_t stop)
{
    static const char nothing[PIECE];
    uint64_t step = step_of(giver);
    int error = 0, failed = 0;
    struct held held;

    for (uint64_t at = start; at < stop && !failed; at += held.length) {
        uint64_t length = stop - at < step ? stop - at : step;
        int zero;
        held = (struct held){.length = length};
        if (!error)
            error = hold(giver, to, at, length, &held);
        length = held.length;
        if (error && at == start) {
            release(giver, &held);
            return pg_answer(to, PG_ASK_READ, error, asked, 0);
        }
        zero = !error && length == stop - start && is_zero(held.bytes, length);
        if (at == start)
            failed =
                pg_answer(to, zero ? PG_ZEROS : PG_ASK_READ, 0, asked, zero ? 0 : stop - start);
        /* The other side waits for so many bytes, and drops them. */
        if (!failed && !zero)
            failed = pg_wire_send(&to->wire, error ? nothing : held.bytes, length);
        if (!failed && !zero && !error)
            __atomic_add_fetch(&giver->sent, length, __ATOMIC_RELAXED);
        release(giver, &held);
    }
    return failed ? failed : judge(giver, to, error);
}

int pg_give_units(struct pg_giver *giver, struct pg_peer *to, struct pg_wire_request asked,
                  uint64_t start, uint64_t stop)
{
    return to->file < 0 ? send_units(giver, to, asked, start, stop)
                        : put_units(giver, to, asked, start, stop);
}

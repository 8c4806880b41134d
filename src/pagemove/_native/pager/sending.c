#define _GNU_SOURCE
#include "pager/sending.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pager/engine/region.h"
#include "pager/pager.h"

enum { PIECE = 1 << 20, SURE = 64, PAGE = 4096 };

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

static int hold(struct pg_giver *giver, struct pg_peer *to, uint64_t at, uint64_t length,
                struct held *held)
{
    int error = pg_check_unchanged(giver, to);

    *held = (struct held){
        .bytes = giver->flat + at, .length = length, .run = blocks_of(giver, at, length)};
    if (error)
        return error;
    error = pg_pin_unasked(giver->region, &held->run, 1);
    if (!error)
        return 0;
    held->run.count = 0;
    if (error == -PG_NO_ROOM) {
        /* Others pin too many: it is touched, as by anybody. */
        held->bytes = held->copy = malloc(length);
        if (held->copy)
            memcpy(held->copy, giver->flat + at, length);
        error = held->copy ? 0 : -ENOMEM;
    }
    if (error) {
        error = -pg_errno_of(-error);
        strcpy(to->text, "it cannot read it: ");
        strncat(to->text, strerror(-error), PG_WHY - 32);
    }
    return error ? error : 0;
}

static void release(struct pg_giver *giver, struct held *held)
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
    uint64_t step = step_of(giver), length;
    int error = 0, failed, zero = 0;

    for (uint64_t at = start; at < stop && !error && !zero; at += step) {
        struct held held;
        length = stop - at < step ? stop - at : step;
        error = hold(giver, to, at, length, &held);
        zero = !error && length == stop - start && is_zero(held.bytes, length);
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

    for (uint64_t at = start; at < stop && !failed; at += step) {
        uint64_t length = stop - at < step ? stop - at : step;
        struct held held = {.run = {0, 0}};
        int zero;
        if (!error)
            error = hold(giver, to, at, length, &held);
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

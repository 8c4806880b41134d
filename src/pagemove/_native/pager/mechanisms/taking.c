#define _GNU_SOURCE
#include "pager/mechanisms/taking.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/lines.h"
#include "pager/mechanisms/threads.h"

static void *copy_of(const void *bytes, size_t length, int *failed)
{
    void *copy = bytes ? malloc(length ? length : 1) : NULL;

    *failed |= bytes && !copy;
    if (copy)
        memcpy(copy, bytes, length);
    return copy;
}

int pg_copy_taking(struct pg_taking *copy, const struct pg_taking *taking)
{
    int failed = 0;

    *copy = *taking;
    copy->address = copy_of(taking->address, taking->address_length, &failed);
    copy->want.at = copy_of(taking->want.at, taking->want.length, &failed);
    copy->secret.at = copy_of(taking->secret.at, taking->secret.length, &failed);
    copy->url = copy_of(taking->url, strlen(taking->url) + 1, &failed);
    copy->backing =
        copy_of(taking->backing, taking->backing ? strlen(taking->backing) + 1 : 0, &failed);
    return failed;
}

void pg_free_taking(struct pg_taking *taking)
{
    if (taking->secret.at)
        explicit_bzero((void *)(uintptr_t)taking->secret.at, taking->secret.length);
    free((void *)(uintptr_t)taking->address);
    free((void *)(uintptr_t)taking->want.at);
    free((void *)(uintptr_t)taking->secret.at);
    free((void *)(uintptr_t)taking->url);
    free((void *)(uintptr_t)taking->backing);
    *taking = (struct pg_taking){.address = NULL};
}

/* Open a connection that the first read or write finds. */
static void *open_first(void *argument)
{
    struct pg_taken *taken = argument;
    char text[PG_TEXT];
    struct pg_line *line;
    int ignored;

    if (!pg_line_take(taken, pg_later(pg_now(), taken->taking.patience_ns), &line, &ignored, text))
        pg_line_keep(taken, line);
    return NULL;
}

int pg_taken_open(const struct pg_taking *taking, uint64_t nbytes, struct pg_taken **opened,
                  char text[PG_TEXT])
{
    struct pg_taken *taken = calloc(1, sizeof *taken);
    pthread_condattr_t monotonic;
    int error;

    text[0] = 0;
    if (!taken)
        return -ENOMEM;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&taken->lock, NULL);
    pthread_cond_init(&taken->freed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    taken->pace.unit = taking->unit;
    /* First, for closing looks at what it has: descriptor 0 is not one of them. */
    error = pg_arrivals_open(&taken->arrivals, nbytes, taking->unit, taking->backing);
    if (!error && pg_copy_taking(&taken->taking, taking))
        error = -ENOMEM;
    if (!error) {
        /* Without a thread for it, who reads first does it. */
        taken->has_first =
            taking->eager && !pg_start_thread(&taken->first, "pagemove-first", open_first, taken);
        *opened = taken;
        return 0;
    }
    if (error != -ENOMEM)
        snprintf(text, PG_TEXT,
                 "no file for what arrives in %.1000s: %s; pass storage_options={'backing': "
                 "DIRECTORY}",
                 taking->backing ? taking->backing : "memory", strerror(-error));
    pg_taken_close(taken);
    return error;
}

void pg_taken_stop(struct pg_taken *taken)
{
    pthread_mutex_lock(&taken->lock);
    __atomic_store_n(&taken->stopping, 1, __ATOMIC_RELEASE);
    for (struct pg_line *line = taken->lines; line; line = line->next)
        shutdown(line->wire.fd, SHUT_RDWR);
    pthread_cond_broadcast(&taken->freed);
    pthread_mutex_unlock(&taken->lock);
    pthread_mutex_lock(&taken->arrivals.lock);
    pthread_cond_broadcast(&taken->arrivals.changed);
    pthread_mutex_unlock(&taken->arrivals.lock);
}

void pg_taken_close(struct pg_taken *taken)
{
    pg_taken_stop(taken);
    if (taken->has_first)
        pthread_join(taken->first, NULL);
    if (taken->has_thread)
        pthread_join(taken->thread, NULL);
    while (taken->lines)
        pg_line_close(taken, taken->lines);
    pg_arrivals_close(&taken->arrivals);
    pg_free_taking(&taken->taking);
    free(taken);
}

void pg_taken_forget(struct pg_taken *taken)
{
    /* As long as one is open here, the other side does not see its end. */
    for (struct pg_line *line = taken->lines; line; line = line->next)
        close(line->wire.fd);
    for (int i = 0; i < PG_ARRIVAL_FILES; i++)
        if (taken->arrivals.files[i].fd >= 0)
            close(taken->arrivals.files[i].fd);
}

/* Why something failed; `text` has the giver's words, or none. */
static int explain(struct pg_taken *taken, int error, const char *operation, uint64_t offset,
                   char text[PG_TEXT])
{
    uint64_t nbytes = taken->arrivals.nbytes;
    uint64_t missing =
        __atomic_load_n(&taken->arrivals.missing, __ATOMIC_ACQUIRE) * taken->arrivals.unit;
    int local = error == -ENOSPC || error == -EDQUOT || error == -PG_SHORT;
    int refused = __atomic_load_n(&taken->refused, __ATOMIC_ACQUIRE);
    char words[1024];

    if (refused) {
        pthread_mutex_lock(&taken->lock);
        snprintf(words, sizeof words, "%.1000s", taken->refusal);
        pthread_mutex_unlock(&taken->lock);
    } else {
        snprintf(words, sizeof words, "%.1000s",
                 *text                  ? text
                 : error == -ETIMEDOUT  ? "no answer"
                 : error == -ECONNRESET ? "it closed the connection"
                 : error == -EPROTO     ? "it does not keep to the protocol"
                 : error == -PG_SHORT   ? "a file of what has arrived was cut short"
                                        : strerror(-error));
    }
    if (refused)
        snprintf(text, PG_TEXT, "cannot %s %.1000s at byte %" PRIu64 ": %s", operation,
                 taken->taking.url, offset, words);
    else
        snprintf(text, PG_TEXT,
                 "cannot %s %.1000s at byte %" PRIu64 ": %s: %s; %" PRIu64 " of %" PRIu64
                 " bytes have not arrived, and stay with the giver until they have: see that it "
                 "runs, and can be reached",
                 operation, taken->taking.url, offset, local ? "a local failure" : "the giver",
                 words, missing < nbytes ? missing : nbytes, nbytes);
    return refused ? -refused : error;
}

/* Bring units that this thread has claimed, by a connection. `again`: it had ended before. */
static int fetch_by(struct pg_taken *taken, struct pg_units run, uint64_t deadline, int *again,
                    char text[PG_TEXT])
{
    uint64_t length;
    struct pg_line *line;
    struct iovec bytes = {NULL, 0};
    int zero = 0, said = 0, error = pg_line_take(taken, deadline, &line, again, text);

    if (error)
        *again = 0;
    else
        error = pg_line_make_ready(taken, line);
    if (error)
        return error;
    pg_units_at(&taken->arrivals, run, &length);
    if (line->file < 0) {
        bytes = (struct iovec){malloc(length), length};
        error = bytes.iov_base ? 0 : -ENOMEM;
        said = error != 0;
    }
    if (!error)
        error = pg_line_ask(line, PG_ASK_READ, run);
    if (!error)
        error = pg_line_hear(line, run, length, bytes.iov_base, &zero, &said, text);
    *again = *again && error && !said;
    if (!error && line->file < 0) {
        error = pg_arrivals_fill(&taken->arrivals, run, zero ? NULL : &bytes, 1, 0);
        said = error != 0;
    }
    free(bytes.iov_base);
    if (!error)
        pg_land_units(&taken->arrivals, run, line->file < 0 ? 0 : line->file);
    /* Where it cannot be acknowledged the next connection says what is here. */
    if (said || (!error && !pg_line_ask(line, PG_ACKNOWLEDGE, run)))
        pg_line_keep(taken, line);
    else
        pg_line_close(taken, line);
    return error;
}

static int fetch(struct pg_taken *taken, struct pg_units run, uint64_t deadline, char text[PG_TEXT])
{
    int again, error;

    do
        error = fetch_by(taken, run, deadline, &again, text);
    while (error && again);
    if (error)
        pg_drop_units(&taken->arrivals, run);
    return error;
}

/* Return when all units of a run are here. 0 or -errno. */
static int bring(struct pg_taken *taken, struct pg_units run, char text[PG_TEXT])
{
    uint64_t now = pg_now(), deadline = pg_later(now, taken->taking.patience_ns);
    uint64_t round_trip = __atomic_load_n(&taken->pace.round_trip, __ATOMIC_RELAXED);
    uint64_t overdue = pg_later(now, pg_later(taken->taking.late_ns, 2 * round_trip));
    uint64_t most = PG_LARGEST_PIECE / taken->arrivals.unit;
    struct pg_units claimed;
    int error = 0;

    text[0] = 0;
    while (!error && !pg_units_are_here(&taken->arrivals, run)) {
        error = -__atomic_load_n(&taken->refused, __ATOMIC_ACQUIRE);
        if (error)
            break;
        if (pg_claim_units(&taken->arrivals, run, most ? (uint32_t)most : 1, pg_now() >= overdue,
                           &claimed))
            error = fetch(taken, claimed, deadline, text);
        else
            error = pg_await_units(&taken->arrivals, run, deadline, overdue, &taken->stopping);
    }
    return error;
}

int pg_taken_read(struct pg_taken *taken, uint64_t offset, const struct iovec *vector, size_t count,
                  uint64_t total, int nowait, char text[PG_TEXT])
{
    struct pg_units run = pg_units_of(&taken->arrivals, offset, total);
    int error;

    if (nowait && !pg_units_are_here(&taken->arrivals, run))
        return -PG_NOT_NOW;
    error = nowait ? 0 : bring(taken, run, text);
    if (!error)
        error = pg_arrivals_read(&taken->arrivals, offset, vector, count, total, nowait);
    return error && error != -PG_NOT_NOW ? explain(taken, error, "read", offset, text) : error;
}

/* Units of which all is written need not come. */
static int write_whole(struct pg_taken *taken, struct pg_units whole, uint64_t offset,
                       const struct iovec *vector, size_t count)
{
    struct pg_units run = {whole.first, whole.first};
    int error = 0;

    while (!error && pg_claim_units(&taken->arrivals, (struct pg_units){run.end, whole.end},
                                    UINT32_MAX, 1, &run)) {
        uint64_t length, at = pg_units_at(&taken->arrivals, run, &length);
        error = pg_arrivals_fill(&taken->arrivals, run, vector, count, at - offset);
        if (error)
            pg_drop_units(&taken->arrivals, run);
        else
            pg_land_units(&taken->arrivals, run, 0);
    }
    return error;
}

/* Who writes is the owner. */
static int own(struct pg_taken *taken, uint64_t deadline, char text[PG_TEXT])
{
    struct pg_line *line;
    int ignored, error = -__atomic_load_n(&taken->refused, __ATOMIC_ACQUIRE);

    text[0] = 0;
    if (error || __atomic_load_n(&taken->has_begun, __ATOMIC_ACQUIRE))
        return error;
    error = pg_line_take(taken, deadline, &line, &ignored, text);
    if (!error)
        error = pg_line_make_ready(taken, line);
    if (!error)
        pg_line_keep(taken, line);
    return error;
}

int pg_taken_write(struct pg_taken *taken, uint64_t offset, const struct iovec *vector,
                   size_t count, uint64_t total, char text[PG_TEXT])
{
    struct pg_arrivals *arrivals = &taken->arrivals;
    uint64_t deadline = pg_later(pg_now(), taken->taking.patience_ns), end = offset + total;
    struct pg_units all = pg_units_of(arrivals, offset, total), whole = all;
    int error = own(taken, deadline, text);

    if (offset % arrivals->unit)
        whole.first++;
    if (end % arrivals->unit && end != arrivals->nbytes && whole.end > whole.first)
        whole.end--;
    if (!error && all.first < whole.first)
        error = bring(taken, (struct pg_units){all.first, whole.first}, text);
    if (!error && whole.end < all.end)
        error = bring(taken, (struct pg_units){whole.end, all.end}, text);
    if (!error)
        error = write_whole(taken, whole, offset, vector, count);
    /* What comes from the giver meanwhile has to be there before it is written over. */
    if (!error)
        error = bring(taken, all, text);
    if (!error)
        error = pg_arrivals_write(arrivals, offset, vector, count, total);
    return error ? explain(taken, error, "write", offset, text) : 0;
}

int pg_taken_sync(struct pg_taken *taken, char text[PG_TEXT])
{
    int error = pg_arrivals_sync(&taken->arrivals);

    text[0] = 0;
    if (error)
        snprintf(text, PG_TEXT, "cannot flush %.1000s: %s", taken->taking.url, strerror(-error));
    return error;
}

void pg_taken_stats(struct pg_taken *taken, char text[PG_TEXT])
{
    uint64_t nbytes = taken->arrivals.nbytes;
    uint64_t missing =
        __atomic_load_n(&taken->arrivals.missing, __ATOMIC_ACQUIRE) * taken->arrivals.unit;

    missing = missing < nbytes ? missing : nbytes;
    snprintf(text, PG_TEXT,
             "{\"arrived_bytes\": %" PRIu64 ", \"missing_bytes\": %" PRIu64 ", \"connected\": %d}",
             nbytes - missing, missing, __atomic_load_n(&taken->connected, __ATOMIC_RELAXED));
}

int pg_taken_go_on(struct pg_taken *taken)
{
    int error;

    pthread_mutex_lock(&taken->lock);
    taken->taking.quiet = taken->has_begun = 0;
    error = pg_line_begin(taken);
    pthread_mutex_unlock(&taken->lock);
    return error;
}

uint64_t pg_taken_bits(struct pg_taken *taken, uint8_t *bits)
{
    if (bits)
        pg_arrival_bits(&taken->arrivals, bits);
    return (taken->arrivals.units + UINT64_C(7)) / 8;
}

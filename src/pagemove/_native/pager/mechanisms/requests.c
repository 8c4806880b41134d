/* What a helper is asked by a channel, and what it answers. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/mechanisms/channel.h"
#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/helper.h"
#include "pager/mechanisms/mail.h"
#include "pager/mechanisms/store.h"

/* ns that a helper has to say why it has ended; between looks. */
#define REASON UINT64_C(50000000)
#define LOOK UINT64_C(1000000)

/* A request that nobody gets any more need not be made: its socket is closed at the other end. */
static int is_gone(const struct pg_lane *lane)
{
    char byte;
    ssize_t got = recv(lane->socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return !got || (got < 0 && errno != EAGAIN && errno != EINTR);
}

static void post(struct pg_channel *channel, struct pg_lane *lane, struct pg_errand request,
                 int quietly)
{
    lane->number = pg_mail_ask(&channel->letters[lane - channel->lanes], &request, lane->generation,
                               lane->number, quietly);
}

/* 0: `said` is 0 or -errno; else as pg_helper_receive, or -PG_NOT_ASKED. */
static int ask(struct pg_channel *channel, struct pg_lane *lane, struct pg_errand request,
               int *said, char text[PG_TEXT])
{
    const struct pg_letter *letter = &channel->letters[lane - channel->lanes];
    int status;

    if (is_gone(lane))
        return -PG_NOT_ASKED;
    post(channel, lane, request, 0);
    status = pg_helper_receive(lane->socket, pg_now() + channel->timeout, said, text);
    /* A process takes milliseconds to end, and its sockets are closed last. */
    return status == -PG_GONE && !pg_mail_taken(letter, lane->number) ? -PG_NOT_ASKED : status;
}

/* Where in the memfd a lane's bytes are. */
static uint64_t buffer_of(const struct pg_channel *channel, const struct pg_lane *lane)
{
    return (uint64_t)(lane - channel->lanes) * channel->buffer_size;
}

/* Copy between pieces, from byte `from` of them on, and the lane's buffer. */
static int exchange(const struct pg_channel *channel, const struct pg_lane *lane, int to_buffer,
                    const struct pg_piece *pieces, uint64_t from, uint64_t length)
{
    uint64_t at = buffer_of(channel, lane);

    for (; length; pieces++) {
        uint64_t here = pieces->length > from ? pieces->length - from : 0;
        char *address = (char *)pieces->address + from;
        here = here < length ? here : length;
        from = here ? 0 : from - pieces->length;
        for (uint64_t done = 0; done < here;) {
            ssize_t n =
                to_buffer ? pwrite(channel->memfd, address + done, here - done, (off_t)(at + done))
                          : pread(channel->memfd, address + done, here - done, (off_t)(at + done));
            if (n <= 0)
                return n ? -errno : -EIO;
            done += (uint64_t)n;
        }
        at += here;
        length -= here;
    }
    return 0;
}

static uint64_t total_length(const struct pg_piece *pieces, size_t count)
{
    uint64_t total = 0;

    for (size_t i = 0; i < count; i++)
        total += pieces[i].length;
    return total;
}

/* One whose sockets a store has closed says so a moment after that, when the store returns. */
static void await_reason(const struct pg_channel *channel, const struct pg_lane *lane)
{
    uint64_t until = pg_now() + REASON;

    while (!pg_mail_is_cut_off(channel->letters, lane->generation) && pg_now() < until &&
           !__atomic_load_n(&channel->stopping, __ATOMIC_RELAXED))
        pg_sleep(LOOK);
}

/* What cannot come from the helper itself. */
static void explain(const struct pg_channel *channel, const struct pg_lane *lane, int status,
                    char text[PG_TEXT])
{
    if (!status)
        return;
    strcpy(text, status == -PG_NO_ANSWER ? "the helper process that runs the store does not answer"
                                         : "the helper process that runs the store has ended");
    if (status != -PG_NO_ANSWER && pg_mail_is_cut_off(channel->letters, lane->generation))
        strcat(text, PG_CUT_OFF);
}

int pg_channel_call(struct pg_channel *channel, int operation, uint64_t offset,
                    const struct pg_piece *pieces, size_t count, char text[PG_TEXT])
{
    uint64_t total = total_length(pieces, count), done = 0, part;
    struct pg_lane *lane;
    int status = 0, error;

    text[0] = 0;
    error = pg_take_lane(channel, operation, offset, total, &lane, text);
    if (error)
        return error;
    for (;;) {
        part = total - done < channel->buffer_size ? total - done : channel->buffer_size;
        if (operation == PG_OP_WRITE)
            error = exchange(channel, lane, 1, pieces, done, part);
        if (!error)
            status = ask(channel, lane,
                         (struct pg_errand){(uint32_t)operation, 0, offset + done, part, 0}, &error,
                         text);
        if (!error && !status && operation == PG_OP_READ)
            error = exchange(channel, lane, 0, pieces, done, part);
        if (error || status || done + part >= total)
            break;
        done += part;
    }
    if (status == -PG_GONE)
        await_reason(channel, lane);
    explain(channel, lane, status, text);
    pg_return_lane(channel, lane, status, offset + done, part);
    return status ? status : error;
}

int pg_channel_ask(struct pg_channel *channel, uint64_t offset, uint64_t length, uint64_t address,
                   int protect, struct pg_lane **asked)
{
    struct pg_errand request = {PG_OP_READ, (uint32_t)protect, offset, length, address};

    *asked = NULL;
    if (length > channel->buffer_size || pthread_mutex_trylock(&channel->lock))
        return -PG_NOT_NOW;
    *asked = pg_free_lane(channel, PG_OP_READ, offset, length);
    if (*asked)
        post(channel, *asked, request, 1);
    pthread_mutex_unlock(&channel->lock);
    return *asked ? 0 : -PG_NOT_NOW;
}

int pg_lane_is_done(const struct pg_channel *channel, const struct pg_lane *lane)
{
    return pg_mail_answered(&channel->letters[lane - channel->lanes], lane->number);
}

int pg_lane_listen(struct pg_channel *channel, const struct pg_lane *lane)
{
    return pg_mail_listen(&channel->letters[lane - channel->lanes], lane->number);
}

int pg_lane_descriptor(const struct pg_lane *lane)
{
    return lane->socket;
}

int pg_channel_answer(struct pg_channel *channel, struct pg_lane *lane, int *said,
                      char text[PG_TEXT])
{
    int status;

    if (pg_lane_is_done(channel, lane)) {
        *said = 0;
        text[0] = 0;
        pg_return_lane(channel, lane, 0, lane->offset, lane->length);
        return 0;
    }
    status = pg_helper_receive(lane->socket, 0, said, text);
    explain(channel, lane, status, text);
    if (status == -PG_NO_ANSWER)
        return status;
    if (status)
        *said = status;
    pg_return_lane(channel, lane, status, lane->offset, lane->length);
    return 0;
}

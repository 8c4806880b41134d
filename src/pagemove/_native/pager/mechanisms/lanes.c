/* Who has which lane, and in which order what they ask for may happen.
 *
 * A request that was not answered in time may still be carried out, now or later: the store's
 * thread sleeps, or the whole helper was stopped. Nothing that would have to come after it is
 * asked for on another lane until its outcome is known: it has been answered, or the process that
 * might carry it out has ended.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "pager/mechanisms/channel.h"
#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/helper.h"
#include "pager/mechanisms/host.h"
#include "pager/mechanisms/limits.h"
#include "pager/mechanisms/mail.h"
#include "pager/mechanisms/threads.h"

/* ns between looks for late answers. */
#define STUCK_LOOK UINT64_C(10000000)

/* Only for the thread that note_death has made. */
static int start_again(struct pg_channel *channel, char text[PG_TEXT])
{
    /* One that others share may have ended for their sake. */
    int blameless = pg_had_company(channel) && channel->restarts_left > 0;

    text[0] = 0;
    /* A helper that hangs in the kernel may still carry out what it was asked for. */
    while (pg_helper_end(channel))
        if (__atomic_load_n(&channel->stopping, __ATOMIC_RELAXED))
            return -ESHUTDOWN;
    for (uint32_t i = 0; i < channel->count; i++) {
        /* Lanes that have not been used have theirs here. */
        if (channel->sockets[i] >= 0)
            close(channel->sockets[i]);
        channel->sockets[i] = -1;
    }
    if (!blameless && channel->restarts_left-- <= 0)
        return -EPIPE;
    __atomic_add_fetch(&channel->restarts, 1, __ATOMIC_RELAXED);
    return pg_helper_start(channel, text);
}

/* Why there is no helper any more, for those who ask: a limit was met, or its store says no. */
static void note_refusal(struct pg_channel *channel, int error, const char *text)
{
    char limit[PG_LIMIT_TEXT];

    channel->refusal[0] = 0;
    if (error == -EPIPE && !*text && pg_mail_is_cut_off(channel->letters, channel->generation))
        strcpy(channel->refusal, PG_CUT_OFF);
    if (!error || error == -ESHUTDOWN || (error == -EPIPE && !*text))
        return;
    pg_name_limit(*text ? 0 : -error, limit);
    snprintf(channel->refusal, sizeof channel->refusal, ", and cannot be started anew: %.3000s%s",
             *text ? text : strerror(-error), limit);
}

static void *replace_helper(void *argument)
{
    struct pg_channel *channel = argument;
    char text[PG_TEXT];
    int error = start_again(channel, text);

    pthread_mutex_lock(&channel->lock);
    note_refusal(channel, error, text);
    channel->generation += !error;
    channel->dead = error != 0;
    channel->starting = 0;
    pthread_cond_broadcast(&channel->freed);
    pthread_mutex_unlock(&channel->lock);
    return NULL;
}

void pg_join_starter(struct pg_channel *channel)
{
    if (channel->has_starter)
        pthread_join(channel->starter, NULL);
    channel->has_starter = 0;
}

/* The helper of a generation has ended: start another, if that is still allowed. A thread of its
 * own does, for that takes a while; others wait for a lane meanwhile, and no longer than they may.
 */
static void note_death(struct pg_channel *channel, unsigned generation)
{
    int error;

    if (channel->dead || channel->stopping || channel->starting ||
        channel->generation != generation)
        return;
    pg_join_starter(channel); /* has ended: nothing is being started */
    channel->starting = 1;
    error = pg_start_thread(&channel->starter, "pagemove-helper", replace_helper, channel);
    channel->has_starter = !error;
    if (error) {
        note_refusal(channel, error, "");
        channel->dead = 1;
        channel->starting = 0;
    }
}

/* What became of a sync that was given up. Who asked for it took it for undecided: the next sync is
 * to fail if this one has, for after that a success means nothing. */
static void note_late_sync(struct pg_channel *channel, int outcome, const char text[PG_TEXT])
{
    channel->late_sync = outcome;
    strcpy(channel->late_text, outcome == -PG_GONE
                                   ? "the helper process that runs the store has ended during a "
                                     "flush"
                                   : text);
}

/* Late answers make stuck lanes free again, and so does the end of their helper. That its socket is
 * closed does not tell yet that it has ended. */
static void look_at_stuck(struct pg_channel *channel)
{
    char text[PG_TEXT];
    int said;

    for (uint32_t i = 0; i < channel->count; i++) {
        struct pg_lane *lane = &channel->lanes[i];
        int status, ended = lane->generation != channel->generation;
        if (lane->state != PG_STUCK)
            continue;
        status = pg_helper_receive(lane->socket, 0, &said, text);
        if (status && !ended) {
            if (status == -PG_GONE)
                note_death(channel, lane->generation);
            continue;
        }
        lane->state = PG_FREE;
        if (lane->undecided)
            note_late_sync(channel, status ? -PG_GONE : said, text);
    }
}

/* The failure of an earlier sync that nobody has heard of; 0: there is none. */
static int take_late_sync(struct pg_channel *channel, char text[PG_TEXT])
{
    int outcome = channel->late_sync;

    if (outcome)
        strcpy(text, channel->late_text);
    channel->late_sync = 0;
    return outcome;
}

/* Whether what a lane is used for has to be over before something else may begin. A read that comes
 * late changes nothing; a sync that does may have taken what the next one would have had to do. */
static int comes_before(const struct pg_lane *lane, int operation, uint64_t offset, uint64_t length)
{
    if (lane->state == PG_FREE)
        return 0;
    if (operation == PG_OP_SYNC)
        return lane->operation == PG_OP_SYNC;
    return operation != PG_OP_STATS && lane->operation == PG_OP_WRITE &&
           offset < lane->offset + lane->length && lane->offset < offset + length;
}

static int must_wait(const struct pg_channel *channel, int operation, uint64_t offset,
                     uint64_t length)
{
    for (uint32_t i = 0; i < channel->count; i++)
        if (comes_before(&channel->lanes[i], operation, offset, length))
            return 1;
    return 0;
}

/* Make a free lane the caller's, on a socket of the present helper. */
static void use(struct pg_channel *channel, struct pg_lane *lane, int operation, uint64_t offset,
                uint64_t length)
{
    uint32_t i = (uint32_t)(lane - channel->lanes);

    if (lane->generation != channel->generation) {
        if (lane->socket >= 0)
            close(lane->socket);
        lane->socket = channel->sockets[i];
        channel->sockets[i] = -1;
        lane->generation = channel->generation;
    }
    lane->state = PG_BUSY;
    lane->operation = operation;
    lane->offset = offset;
    lane->length = length;
}

struct pg_lane *pg_free_lane(struct pg_channel *channel, int operation, uint64_t offset,
                             uint64_t length)
{
    if (channel->stopping || channel->dead || channel->starting ||
        must_wait(channel, operation, offset, length))
        return NULL;
    for (uint32_t i = 0; i < channel->count; i++)
        if (channel->lanes[i].state == PG_FREE) {
            use(channel, &channel->lanes[i], operation, offset, length);
            return &channel->lanes[i];
        }
    return NULL;
}

static void explain(const struct pg_channel *channel, int error, int operation, uint64_t offset,
                    uint64_t length, char text[PG_TEXT])
{
    if (error != -PG_NO_ANSWER)
        snprintf(text, PG_TEXT, "the helper process that runs the store has ended%.*s",
                 PG_TEXT - 64, channel->refusal);
    else if (channel->starting)
        snprintf(text, PG_TEXT,
                 "the helper process that runs the store has ended, and another has not started "
                 "yet%s",
                 pg_mail_is_cut_off(channel->letters, channel->generation) ? PG_CUT_OFF : "");
    else if (must_wait(channel, operation, offset, length))
        strcpy(text, operation == PG_OP_SYNC
                         ? "an earlier flush of the store has not been answered yet"
                         : "an earlier write of these bytes has not been answered yet");
    else
        strcpy(text, "the helper process that runs the store does not answer");
}

int pg_take_lane(struct pg_channel *channel, int operation, uint64_t offset, uint64_t length,
                 struct pg_lane **taken, char text[PG_TEXT])
{
    uint64_t now = pg_now(), deadline = now + channel->timeout;
    struct pg_lane *lane = NULL;
    int error = 0;

    pthread_mutex_lock(&channel->lock);
    for (;;) {
        look_at_stuck(channel);
        if (operation == PG_OP_SYNC)
            error = take_late_sync(channel, text);
        if (!error)
            lane = pg_free_lane(channel, operation, offset, length);
        if (error || lane)
            break;
        now = pg_now();
        error = channel->stopping || channel->dead ? -PG_NOT_ASKED
                : now >= deadline                  ? -PG_NO_ANSWER
                                                   : 0;
        if (error) {
            explain(channel, error, operation, offset, length, text);
            break;
        }
        pg_wait_until(&channel->freed, &channel->lock, now + STUCK_LOOK);
    }
    pthread_mutex_unlock(&channel->lock);
    *taken = lane;
    return error;
}

int pg_channel_is_late(struct pg_channel *channel, uint64_t offset, uint64_t length)
{
    int found = 0;

    if (pthread_mutex_trylock(&channel->lock))
        return 0;
    for (uint32_t i = 0; i < channel->count; i++)
        found |= channel->lanes[i].state == PG_STUCK &&
                 comes_before(&channel->lanes[i], PG_OP_WRITE, offset, length);
    pthread_mutex_unlock(&channel->lock);
    return found;
}

void pg_return_lane(struct pg_channel *channel, struct pg_lane *lane, int status, uint64_t offset,
                    uint64_t length)
{
    pthread_mutex_lock(&channel->lock);
    /* Of a helper whose socket is closed the outcome is known when it is dead: lanes are taken
     * from the next one only, and this one is free by then. */
    lane->state = status && status != -PG_NOT_ASKED ? PG_STUCK : PG_FREE;
    lane->undecided = status == -PG_NO_ANSWER && lane->operation == PG_OP_SYNC;
    lane->offset = offset;
    lane->length = length;
    if (status == -PG_GONE || status == -PG_NOT_ASKED)
        note_death(channel, lane->generation);
    /* Several may wait, for other reasons each. */
    pthread_cond_broadcast(&channel->freed);
    pthread_mutex_unlock(&channel->lock);
}

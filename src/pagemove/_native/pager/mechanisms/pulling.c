/* How a taker brings in what nobody touches: by one connection, in the giver's order, a few
 * requests ahead. One that breaks takes nothing along: what has not arrived is asked for again by
 * the next, which first says what has. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/lines.h"

/* ns between two attempts, after one that brought something, and at the most. */
#define FIRST_PAUSE UINT64_C(20000000)
#define LONGEST_PAUSE UINT64_C(250000000)

enum { REQUESTS = 64 };

struct run {
    uint64_t first, count;
};

/* What is wanted next, in an order. */
struct order {
    const struct run *runs;
    uint64_t count, at;
    uint32_t first; /* within the run */
};

static int is_stopping(const struct pg_taken *taken)
{
    return __atomic_load_n(&taken->stopping, __ATOMIC_ACQUIRE);
}

static uint32_t missing(const struct pg_taken *taken)
{
    return __atomic_load_n(&taken->arrivals.missing, __ATOMIC_ACQUIRE);
}

/* Ask, and receive the head of an answer that has so many bytes at most. */
static int ask(const struct pg_line *line, int kind, const void *bytes, uint64_t length,
               struct pg_wire_answer *answer)
{
    struct pg_wire_request request = {.kind = (uint8_t)kind, .count = length};
    int error = pg_wire_send(&line->wire, &request, sizeof request);

    if (!error && length)
        error = pg_wire_send(&line->wire, bytes, length);
    if (!error)
        error = pg_wire_receive(&line->wire, answer, sizeof *answer);
    return error ? error : answer->kind != kind || answer->error ? -EPROTO : 0;
}

/* Say what is here, and learn how many units the giver alone has. */
static int tell(struct pg_taken *taken, const struct pg_line *line, uint64_t *alone)
{
    uint64_t length = (taken->arrivals.units + UINT64_C(7)) / 8, began;
    uint8_t *bits = malloc(length);
    struct pg_wire_answer answer;
    int error;

    if (!bits)
        return -ENOMEM;
    pg_arrival_bits(&taken->arrivals, bits);
    began = pg_now();
    error = ask(line, PG_HAVE, bits, length, &answer);
    free(bits);
    if (error)
        return error;
    pg_heard_after(&taken->pace, pg_now() - began);
    *alone = answer.first;
    return answer.length ? -EPROTO : 0;
}

static int get_order(struct pg_taken *taken, const struct pg_line *line, struct run **runs,
                     uint64_t *count)
{
    struct pg_wire_answer answer;
    int error = ask(line, PG_ORDER, NULL, 0, &answer);

    *runs = NULL;
    if (error)
        return error;
    if (answer.first > taken->arrivals.units || answer.length != answer.first * sizeof **runs)
        return -EPROTO;
    *count = answer.first;
    *runs = malloc(answer.length ? answer.length : 1);
    return *runs ? pg_wire_receive(&line->wire, *runs, answer.length) : -ENOMEM;
}

/* Ask for the next run that is missing. */
static int next_wanted(struct pg_taken *taken, struct order *order, uint32_t most,
                       struct pg_units *run)
{
    uint64_t units = taken->arrivals.units;

    for (; order->at < order->count; order->at++, order->first = 0) {
        const struct run *now = &order->runs[order->at];
        uint64_t end =
            now->first < units && now->count < units - now->first ? now->first + now->count : units;
        uint64_t first = now->first + order->first;
        struct pg_units among = {(uint32_t)first, (uint32_t)end};
        if (first >= end || !pg_ask_units(&taken->arrivals, among, most, run))
            continue;
        order->first = (uint32_t)(run->end - now->first);
        return 1;
    }
    return 0;
}

/* Keep what has come, but for what has come otherwise. */
static int keep(struct pg_taken *taken, const struct pg_line *line, struct pg_units among, int zero,
                void *bytes)
{
    struct pg_units run = {among.first, among.first};
    struct iovec all = {bytes, (among.end - among.first) * taken->arrivals.unit};
    int error = 0;

    while (!error && pg_claim_units(&taken->arrivals, (struct pg_units){run.end, among.end},
                                    UINT32_MAX, 1, &run)) {
        if (line->file < 0)
            error = pg_arrivals_fill(&taken->arrivals, run, zero ? NULL : &all, 1,
                                     (run.first - among.first) * taken->arrivals.unit);
        if (error)
            pg_drop_units(&taken->arrivals, run);
        else
            pg_land_units(&taken->arrivals, run, line->file < 0 ? 0 : line->file);
    }
    return error;
}

/* Requests that were not answered yet. */
struct queue {
    struct pg_units runs[REQUESTS];
    unsigned first, count;
    uint64_t ahead; /* bytes of them */
};

static int fill_queue(struct pg_taken *taken, const struct pg_line *line, struct order *order,
                      struct queue *queue)
{
    uint64_t unit = taken->arrivals.unit, most = pg_ahead(&taken->pace), piece = most / 4;
    int error = 0;

    piece = (piece < PG_LARGEST_PIECE ? piece : PG_LARGEST_PIECE) / unit;
    while (!error && queue->ahead < most && queue->count < REQUESTS) {
        struct pg_units run;
        if (!next_wanted(taken, order, piece ? (uint32_t)piece : 1, &run))
            break;
        queue->runs[(queue->first + queue->count++) % REQUESTS] = run;
        queue->ahead += (run.end - run.first) * unit;
        error = pg_line_ask(line, PG_ASK_READ, run);
    }
    return error;
}

/* Take the answer to the first of the queue. `unreadable`: why the giver cannot read it. */
static int take_first(struct pg_taken *taken, const struct pg_line *line, struct queue *queue,
                      void *bytes, int *unreadable)
{
    struct pg_units run = queue->runs[queue->first];
    char text[PG_TEXT];
    uint64_t length;
    int zero, said, error;

    pg_units_at(&taken->arrivals, run, &length);
    error = pg_line_hear(line, run, length, bytes, &zero, &said, text);
    if (error && said) {
        *unreadable = error;
        pg_unask_units(&taken->arrivals, run);
        error = 0;
    } else if (!error) {
        error = keep(taken, line, run, zero, bytes);
        /* What another thread brings is acknowledged by that one. */
        if (!error && pg_units_are_here(&taken->arrivals, run))
            error = pg_line_ask(line, PG_ACKNOWLEDGE, run);
    }
    if (error)
        return error;
    queue->first = (queue->first + 1) % REQUESTS;
    queue->count--;
    queue->ahead -= (run.end - run.first) * taken->arrivals.unit;
    return 0;
}

static int bring_in_order(struct pg_taken *taken, const struct pg_line *line, struct order order,
                          void *bytes, int *unreadable)
{
    struct queue queue = {.count = 0};
    uint64_t began = pg_now(), now, ahead;
    int error = 0;

    while (!error && !is_stopping(taken)) {
        error = fill_queue(taken, line, &order, &queue);
        ahead = queue.ahead;
        if (error || !queue.count)
            break;
        error = take_first(taken, line, &queue, bytes, unreadable);
        now = pg_now();
        pg_came_after(&taken->pace, ahead - queue.ahead, now - began);
        began = now;
    }
    for (; queue.count; queue.count--, queue.first = (queue.first + 1) % REQUESTS)
        pg_unask_units(&taken->arrivals, queue.runs[queue.first]);
    return error;
}

/* Have connections for what is touched before it is: the giver's interpreter answers them, and may
 * be busy when they are needed. */
static void open_spares(struct pg_taken *taken)
{
    char text[PG_TEXT];
    struct pg_line *line;
    int opens;

    /* Where nothing is missing any more none is kept. */
    for (int i = 0; i < PG_TOUCH_LINES && missing(taken) && !is_stopping(taken); i++) {
        pthread_mutex_lock(&taken->lock);
        opens = taken->touch_lines < PG_TOUCH_LINES;
        taken->touch_lines += opens != 0;
        pthread_mutex_unlock(&taken->lock);
        if (!opens)
            return;
        if (pg_line_open(taken, 1, &line, text) || pg_line_make_ready(taken, line))
            return;
        pg_line_keep(taken, line);
    }
}

/* 1: nothing is missing at the giver; 0 or -errno. */
static int bring_all(struct pg_taken *taken, const struct pg_line *line)
{
    uint64_t alone, largest = taken->arrivals.unit;
    struct run *runs = NULL, whole = {0, taken->arrivals.units};
    struct order order = {.count = 0}, rest = {.runs = &whole, .count = 1};
    void *bytes = NULL;
    int error = tell(taken, line, &alone), unreadable = 0;

    if (error || !alone)
        return error ? error : 1;
    open_spares(taken);
    error = get_order(taken, line, &runs, &order.count);
    order.runs = runs;
    if (!error && line->file < 0) {
        bytes = malloc(largest < PG_LARGEST_PIECE ? PG_LARGEST_PIECE : largest);
        error = bytes ? 0 : -ENOMEM;
    }
    if (!error)
        error = bring_in_order(taken, line, order, bytes, &unreadable);
    /* What the order does not have, or what a thread failed to bring. */
    unreadable = 0;
    if (!error)
        error = bring_in_order(taken, line, rest, bytes, &unreadable);
    free(runs);
    free(bytes);
    if (error || unreadable)
        return error ? error : unreadable;
    /* What others were bringing. */
    pg_await_units(&taken->arrivals, (struct pg_units){0, taken->arrivals.units},
                   pg_later(pg_now(), taken->taking.patience_ns), 0, &taken->stopping);
    error = tell(taken, line, &alone);
    return error ? error : !alone;
}

/* Wait for a while, or until it is to stop. */
static void pause_for(struct pg_taken *taken, uint64_t nanoseconds)
{
    uint64_t until = pg_later(pg_now(), nanoseconds);

    pthread_mutex_lock(&taken->lock);
    while (!taken->stopping && pg_now() < until)
        pg_wait_until(&taken->freed, &taken->lock, until);
    pthread_mutex_unlock(&taken->lock);
}

/* 1: there is no more to do. */
static int bring(struct pg_taken *taken)
{
    char text[PG_TEXT];
    struct pg_line *line;
    int done = pg_line_open(taken, 0, &line, text);

    if (!done)
        done = pg_line_make_ready(taken, line);
    if (done)
        return __atomic_load_n(&taken->refused, __ATOMIC_ACQUIRE) ? 1 : done;
    __atomic_store_n(&taken->connected, 1, __ATOMIC_RELAXED);
    done = bring_all(taken, line);
    __atomic_store_n(&taken->connected, 0, __ATOMIC_RELAXED);
    pg_line_close(taken, line);
    return done;
}

static void close_idle(struct pg_taken *taken)
{
    struct pg_line *line;

    do {
        pthread_mutex_lock(&taken->lock);
        taken->running = 0;
        line = taken->lines;
        while (line && !line->idle)
            line = line->next;
        if (line)
            line->idle = 0;
        pthread_mutex_unlock(&taken->lock);
        if (line)
            pg_line_close(taken, line);
    } while (line);
}

void *pg_pull(void *argument)
{
    struct pg_taken *taken = argument;
    uint64_t pause = 0, since = pg_now();

    while (!is_stopping(taken)) {
        uint32_t before = missing(taken);
        if (before)
            since = pg_now();
        else if (pg_now() - since > taken->taking.patience_ns)
            break; /* all is here, and the giver does not want to know */
        if (bring(taken) == 1)
            break;
        pause = missing(taken) < before ? FIRST_PAUSE : 2 * pause + FIRST_PAUSE;
        pause = pause < LONGEST_PAUSE ? pause : LONGEST_PAUSE;
        pause_for(taken, pause);
    }
    close_idle(taken);
    return NULL;
}

#define _GNU_SOURCE
#include "pager/mechanisms/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/helper.h"
#include "pager/mechanisms/threads.h"

/* Have the giver put what is asked for into a file, where it may: of the same machine and user. */
static int share_file(struct pg_taken *taken, struct pg_line *line)
{
    struct pg_wire_request request = {.kind = PG_FILE};
    struct pg_wire_answer answer;
    int error, file;

    if (!pg_is_trusted(line->wire.fd))
        return 0;
    file = pg_arrivals_file(&taken->arrivals);
    /* None left, of many connections, or no room for one more: it is sent. */
    if (file == -ENFILE || file == -EMFILE || file == -ENOMEM || file == -ENOSPC)
        return 0;
    if (file < 0)
        return file;
    error = pg_wire_pass(&line->wire, &request, sizeof request, taken->arrivals.files[file].fd);
    if (!error)
        error = pg_wire_receive(&line->wire, &answer, sizeof answer);
    if (!error && (answer.kind != PG_FILE || answer.length))
        error = -EPROTO;
    if (!error && !answer.error)
        line->file = file;
    else
        pg_arrivals_drop_file(&taken->arrivals, file);
    return error;
}

static void note_refusal(struct pg_taken *taken, int error, const char text[PG_TEXT])
{
    pthread_mutex_lock(&taken->lock);
    if (!taken->refused) {
        memcpy(taken->refusal, text, PG_TEXT);
        __atomic_store_n(&taken->refused, -error, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&taken->lock);
}

int pg_line_begin(struct pg_taken *taken)
{
    int error;

    if (taken->has_begun)
        return 0;
    error =
        taken->taking.quiet ? 0 : pg_start_thread(&taken->thread, "pagemove-take", pg_pull, taken);
    taken->has_thread = !error && !taken->taking.quiet;
    taken->running = !error;
    __atomic_store_n(&taken->has_begun, !error, __ATOMIC_RELEASE);
    return error;
}

/* There is one less. */
static void count_out(struct pg_taken *taken, int touches)
{
    pthread_mutex_lock(&taken->lock);
    taken->touch_lines -= touches != 0;
    pthread_cond_broadcast(&taken->freed);
    pthread_mutex_unlock(&taken->lock);
}

/* Have it be known, so that whoever stops the store ends it. */
static int enter(struct pg_taken *taken, struct pg_line *line)
{
    int error;

    pthread_mutex_lock(&taken->lock);
    error = taken->stopping ? -ECANCELED : 0;
    line->next = taken->lines;
    taken->lines = line;
    pthread_mutex_unlock(&taken->lock);
    return error;
}

int pg_line_open(struct pg_taken *taken, int touches, struct pg_line **opened, char text[PG_TEXT])
{
    const struct sockaddr *address = taken->taking.address;
    struct pg_line *line = calloc(1, sizeof *line);
    int refused = 0, error;

    text[0] = 0;
    if (!line) {
        count_out(taken, touches);
        return -ENOMEM;
    }
    *line = (struct pg_line){.wire = {.patience = taken->taking.patience_ns,
                                      .deadline = UINT64_MAX,
                                      .stopping = &taken->stopping},
                             .file = PG_NOT_READY,
                             .touches = touches};
    line->wire.fd = pg_above_standard(
        socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    error = enter(taken, line);
    if (line->wire.fd < 0)
        error = line->wire.fd;
    if (!error)
        error = pg_greet(&taken->taking, &line->wire, &refused, text);
    if (error && refused)
        note_refusal(taken, error, text);
    if (error) {
        pg_line_close(taken, line);
        return error;
    }
    *opened = line;
    return 0;
}

int pg_line_make_ready(struct pg_taken *taken, struct pg_line *line)
{
    int error = 0;

    if (line->file == PG_NOT_READY) {
        line->file = -1;
        error = share_file(taken, line);
        if (!error) {
            pthread_mutex_lock(&taken->lock);
            error = pg_line_begin(taken);
            pthread_mutex_unlock(&taken->lock);
        }
    }
    if (error)
        pg_line_close(taken, line);
    return error;
}

void pg_line_close(struct pg_taken *taken, struct pg_line *line)
{
    struct pg_line **at = &taken->lines;

    pthread_mutex_lock(&taken->lock);
    while (*at != line)
        at = &(*at)->next;
    *at = line->next;
    pthread_mutex_unlock(&taken->lock);
    count_out(taken, line->touches);
    if (line->wire.fd >= 0) {
        /* Also where a forked child has a copy of it. */
        shutdown(line->wire.fd, SHUT_RDWR);
        close(line->wire.fd);
    }
    if (line->file >= 0)
        pg_arrivals_drop_file(&taken->arrivals, line->file);
    free(line);
}

static struct pg_line *idle_line(struct pg_taken *taken)
{
    for (struct pg_line *line = taken->lines; line; line = line->next)
        if (line->idle) {
            line->idle = 0;
            return line;
        }
    return NULL;
}

int pg_line_take(struct pg_taken *taken, uint64_t deadline, struct pg_line **found, int *was_idle,
                 char text[PG_TEXT])
{
    int error = 0, opens = 0;

    text[0] = 0;
    *was_idle = 1;
    pthread_mutex_lock(&taken->lock);
    while (!error && !opens) {
        *found = idle_line(taken);
        if (*found)
            break;
        opens = !taken->touch_lines;
        taken->touch_lines += opens != 0;
        if (taken->stopping)
            error = -ECANCELED;
        else if (!opens && pg_now() >= deadline)
            error = -ETIMEDOUT;
        else if (!opens)
            pg_wait_until(&taken->freed, &taken->lock, deadline);
    }
    pthread_mutex_unlock(&taken->lock);
    if (opens) {
        *was_idle = 0;
        error = pg_line_open(taken, 1, found, text);
    }
    return error;
}

void pg_line_keep(struct pg_taken *taken, struct pg_line *line)
{
    int keeps;

    pthread_mutex_lock(&taken->lock);
    keeps = !taken->stopping && (taken->running || !taken->has_begun) &&
            __atomic_load_n(&taken->arrivals.missing, __ATOMIC_ACQUIRE);
    line->idle = keeps;
    if (keeps)
        pthread_cond_broadcast(&taken->freed);
    pthread_mutex_unlock(&taken->lock);
    if (!keeps)
        pg_line_close(taken, line);
}

int pg_line_ask(const struct pg_line *line, int kind, struct pg_units run)
{
    struct pg_wire_request request = {
        .kind = (uint8_t)kind, .first = run.first, .count = run.end - run.first};

    return pg_wire_send(&line->wire, &request, sizeof request);
}

static int hear_text(const struct pg_line *line, uint64_t length, char text[PG_TEXT])
{
    int error = length < PG_TEXT ? pg_wire_receive(&line->wire, text, length) : -EPROTO;

    text[error ? 0 : length] = 0;
    return error;
}

static int code_of(int32_t error)
{
    return error > 0 && error < PG_SHORT ? -error : -EIO;
}

int pg_line_hear(const struct pg_line *line, struct pg_units run, uint64_t length, void *bytes,
                 int *zero, int *said, char text[PG_TEXT])
{
    int kind = line->file < 0 ? PG_ASK_READ : PG_IN_FILE;
    struct pg_wire_answer answer;
    struct pg_wire_verdict verdict;
    int error = pg_wire_receive(&line->wire, &answer, sizeof answer);

    text[0] = 0;
    *said = 0;
    if (error)
        return error;
    *zero = answer.kind == PG_ZEROS;
    if ((answer.kind != kind && !*zero) || answer.first != run.first ||
        answer.count != run.end - run.first)
        return -EPROTO;
    if (answer.error) {
        error = hear_text(line, answer.length, text);
        *said = !error;
        return error ? error : code_of(answer.error);
    }
    if (answer.length != (*zero ? 0 : length))
        return -EPROTO;
    if (!*zero && line->file < 0)
        error = pg_wire_receive(&line->wire, bytes, length);
    if (!error)
        error = pg_wire_receive(&line->wire, &verdict, sizeof verdict);
    if (error || !verdict.error)
        return error;
    error = hear_text(line, verdict.length, text);
    *said = !error;
    return error ? error : code_of(verdict.error);
}

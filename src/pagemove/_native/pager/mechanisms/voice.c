/* The pager's threads have a file table of their own (table.c), so none of them knows what the
 * program's descriptor 2 is. A thread in the program's table does the writing. */
#define _GNU_SOURCE
#include "pager/mechanisms/voice.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "descriptors.h"
#include "pager/mechanisms/threads.h"
#include "pager/state/blocks.h"

enum { PATIENCE_SECONDS = 1 };

struct voice {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    unsigned users;
    int stop;
    int stuck;     /* what is being written has been for too long: nothing more is said meanwhile */
    size_t length; /* of a line that is to be written; 0: none */
    char line[PIPE_BUF];
};

static struct voice *voice;

/* One write: lines of several processes do not mix. */
void pg_write_line(const char *line, size_t length)
{
    struct pollfd polled = {STDERR_FILENO, POLLOUT, 0};

    if (pm_may_print(STDERR_FILENO) && poll(&polled, 1, 0) == 1 && polled.revents & POLLOUT &&
        write(STDERR_FILENO, line, length) < 0)
        return; /* there is no one to report to */
}

static void *speak(void *argument)
{
    struct voice *mine = argument;

    pthread_mutex_lock(&mine->lock);
    while (!mine->stop || mine->length) {
        if (!mine->length) {
            pthread_cond_wait(&mine->changed, &mine->lock);
            continue;
        }
        pthread_mutex_unlock(&mine->lock);
        pg_write_line(mine->line, mine->length);
        pthread_mutex_lock(&mine->lock);
        mine->length = 0;
        mine->stuck = 0;
        pthread_cond_broadcast(&mine->changed);
    }
    pthread_mutex_unlock(&mine->lock);
    return NULL;
}

/* Wait until what is being written is out, but not forever: a terminal that has room for a part of
 * a line keeps its writer. Whether it is. */
static int wait_for_silence(struct voice *mine)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PATIENCE_SECONDS;
    while (mine->length && !mine->stuck)
        if (pthread_cond_timedwait(&mine->changed, &mine->lock, &until) == ETIMEDOUT)
            mine->stuck = mine->length != 0;
    return !mine->length;
}

void pg_say(const char *format, ...)
{
    struct voice *mine = voice;
    char line[PIPE_BUF];
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length >= (int)sizeof line) {
        length = sizeof line - 1;
        line[length - 1] = '\n';
    }
    if (length <= 0 || !mine)
        return;
    pthread_mutex_lock(&mine->lock);
    if (wait_for_silence(mine)) {
        for (int i = 0; i < length; i++)
            mine->line[i] = line[i];
        mine->length = (size_t)length;
        pthread_cond_broadcast(&mine->changed);
        wait_for_silence(mine);
    }
    pthread_mutex_unlock(&mine->lock);
}

static void say_line(const char *line)
{
    pg_say("%s", line);
}

int pg_voice_enter(void)
{
    pthread_condattr_t monotonic;
    struct voice *made;
    int error;

    if (voice) {
        voice->users++;
        return 0;
    }
    made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    made->users = 1;
    error = pg_start_thread(&made->thread, "pagemove-stderr", speak, made);
    if (error) {
        free(made);
        return error;
    }
    voice = made;
    __atomic_store_n(&pg_last_words, say_line, __ATOMIC_RELEASE);
    return 0;
}

void pg_voice_leave(void)
{
    struct voice *last = voice;
    int silent;

    if (!last || --last->users)
        return;
    voice = NULL;
    pthread_mutex_lock(&last->lock);
    last->stop = 1;
    pthread_cond_broadcast(&last->changed);
    silent = wait_for_silence(last);
    pthread_mutex_unlock(&last->lock);
    if (!silent) {
        /* Every fork of the program waits for this. It ends when its line is taken. */
        pthread_detach(last->thread);
        return;
    }
    pthread_join(last->thread, NULL);
    free(last);
}

void pg_voice_forget(void)
{
    voice = NULL;
}

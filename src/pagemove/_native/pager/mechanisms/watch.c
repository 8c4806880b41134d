/* Whether the interpreter of a helper process still comes to those who wait for it. */
#define _GNU_SOURCE
#include "pager/mechanisms/watch.h"

#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/threads.h"

/* ns between looks. */
#define LOOK UINT64_C(100000000)

static uint64_t patience, last_beat;

static const char message[] =
    "pagemove: a store has not let others have the interpreter of the helper process that they "
    "share: that process ends, and each goes on in a process of its own; open its region with "
    "isolated=True\n";

static void say(void)
{
    struct pollfd polled = {STDERR_FILENO, POLLOUT, 0};

    /* A pipe that has room for anything has room for this. */
    if (poll(&polled, 1, 0) > 0 && write(STDERR_FILENO, message, sizeof message - 1) < 0)
        return;
}

static void *watch(void *unused)
{
    (void)unused;
    for (;;) {
        uint64_t beat = __atomic_load_n(&last_beat, __ATOMIC_ACQUIRE);
        if (beat && pg_now() > beat + patience) {
            say();
            _exit(1);
        }
        pg_sleep(LOOK);
    }
    return NULL;
}

int pg_watch_beats(uint64_t patience_ns)
{
    pthread_t thread;
    int error;

    patience = patience_ns;
    error = pg_start_thread(&thread, "pagemove-watch", watch, NULL);
    if (!error)
        pthread_detach(thread);
    return error;
}

void pg_beat(int watched)
{
    __atomic_store_n(&last_beat, watched ? pg_now() : 0, __ATOMIC_RELEASE);
}

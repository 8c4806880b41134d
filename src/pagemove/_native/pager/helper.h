/* The helper process of a channel: how it is started and ended, and its answers. */
#ifndef PAGEMOVE_PAGER_HELPER_H
#define PAGEMOVE_PAGER_HELPER_H

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#include "pager.h"

enum pg_line_state { PG_FREE, PG_BUSY, PG_STUCK };

/* PG_STUCK: no answer came in time. It may be used again when the late answer has arrived. */
struct pg_line {
    int socket;
    unsigned generation;
    enum pg_line_state state;
};

struct pg_channel {
    pthread_mutex_t lock;
    pthread_cond_t freed;
    struct pg_line *lines;
    int *sockets; /* of the present helper, for lines that still have an older one */
    unsigned generation;
    uint32_t count;
    int memfd, config, log, region, control;
    pid_t pid;
    uint64_t buffer_size, timeout;
    char **argv;
    int restarts_left, stopping;
    int starting; /* `starter` starts a helper: pid and sockets are its own meanwhile */
    int has_starter;
    pthread_t starter;
    uint64_t restarts;
    int dead; /* the errno that everybody gets from now on */
};

/* Start a helper, and wait until it has its store. For the starter, and whoever opens. */
int pg_helper_start(struct pg_channel *channel, char text[PG_TEXT]);

/* End it, or see that it has ended. For the same two, and whoever closes. */
void pg_helper_end(struct pg_channel *channel);

/* One answer, explanation and all. 0 or what the helper says, -EPIPE where it has ended,
 * -ETIMEDOUT.
 */
int pg_helper_receive(int fd, uint64_t deadline, char text[PG_TEXT]);

#endif

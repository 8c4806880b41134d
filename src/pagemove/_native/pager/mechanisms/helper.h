/* The helper process of a channel: how it is started and ended, and its answers. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_HELPER_H
#define PAGEMOVE_PAGER_MECHANISMS_HELPER_H

#include <pthread.h>
#include <stdint.h>

#include "pager/mechanisms/config.h"

enum pg_lane_state { PG_FREE, PG_BUSY, PG_STUCK };

/* PG_STUCK: no answer came in time, so nobody knows whether what was asked for has happened, or
 * still will. It may be used again when the late answer has arrived. */
struct pg_lane {
    int socket;
    uint32_t number; /* of its last request (mail.h) */
    unsigned generation;
    enum pg_lane_state state;
    int operation; /* of what it is used for, while it is not free */
    int undecided; /* a sync was given up on it: the next one returns what became of it */
    uint64_t offset, length;
};

struct pg_channel {
    pthread_mutex_t lock;
    pthread_cond_t freed;
    struct pg_lane *lanes;
    struct pg_letter *letters; /* of each lane */
    int *sockets;              /* of the present helper, for lanes that still have an older one */
    unsigned generation;
    uint32_t count;
    int memfd, config, log, region, control;
    int process; /* a pidfd: a number could be another process's by now. -1: there is no helper */
    int leaving; /* `control`, once the region has asked a shared helper to let it go */
    int door, door_is_new;
    struct pg_host *host; /* of the first helper, if that may be shared */
    int shares;           /* the present helper is that one */
    uint64_t buffer_size, timeout;
    char **argv;
    const int *given_up; /* of the first start, or NULL: set when nobody waits for it any more */
    int restarts_left, stopping;
    int restartable; /* another process can go on with its store */
    int starting;    /* `starter` starts a helper: process and sockets are its own meanwhile */
    int has_starter;
    pthread_t starter;
    uint64_t restarts;
    int dead;              /* there is no helper, and will be none */
    char refusal[PG_TEXT]; /* why not, where that is known; empty, or follows other words */
    int late_sync;         /* how a sync failed that had been given up; 0: none has */
    char late_text[PG_TEXT];
};

/* The same file at a descriptor that is none of standard input, output and error, or -errno. */
int pg_above_standard(int fd);

/* A pair of sockets, each at a descriptor above those of standard input, output and error. */
int pg_make_pair(int pair[2]);

/* 0, -PG_NO_ANSWER or -errno. */
int pg_wait_readable(int fd, uint64_t deadline);

/* Why a helper has ended; follows words that say that it has. */
#define PG_CUT_OFF                                                                                 \
    ": a store that it runs has closed descriptors which are not its own, as os.closerange does; " \
    "close only what the store has opened"

/* Whether nobody waits for the helper that is being started. */
int pg_is_given_up(const struct pg_channel *channel);

/* Start a helper, and wait until it has its store. For the starter, and whoever opens. */
int pg_helper_start(struct pg_channel *channel, char text[PG_TEXT]);

/* End it, or leave it to the others that share it, and wait for that: 0, then nothing that it was
 * asked for can happen any more. -EBUSY: not even SIGKILL has ended it so far, for it hangs in the
 * kernel; or it has all there is of what others keep in it. For the same two, and whoever closes.
 */
int pg_helper_end(struct pg_channel *channel);

/* One answer. 0: `said` is what the store said of it, 0 or -errno, and `text` explains that.
 * -PG_NO_ANSWER: there is none. -PG_GONE: there will be none, for the helper has ended. */
int pg_helper_receive(int fd, uint64_t deadline, int *said, char text[PG_TEXT]);

/* spawn.c: run a program that is no child of this process, and has `control` as its descriptor 3.
 * A pidfd, or -errno. */
int pg_spawn(char *const *argv, int control);

/* lanes.c */

/* A lane for this thread alone, when nothing that must come before is under way or of unknown
 * outcome. 0, -PG_NO_ANSWER or -PG_NOT_ASKED; then `text` says why. */
int pg_take_lane(struct pg_channel *channel, int operation, uint64_t offset, uint64_t length,
                 struct pg_lane **taken, char text[PG_TEXT]);

/* The same at once, or NULL. Wants the lock. */
struct pg_lane *pg_free_lane(struct pg_channel *channel, int operation, uint64_t offset,
                             uint64_t length);

/* Done with it. `status`: of pg_helper_receive, or -PG_NOT_ASKED. If the outcome is not known, that
 * of a part of what it was taken for. */
void pg_return_lane(struct pg_channel *channel, struct pg_lane *lane, int status, uint64_t offset,
                    uint64_t length);

/* Wait for the thread that starts another helper, if there ever was one. */
void pg_join_starter(struct pg_channel *channel);

#endif

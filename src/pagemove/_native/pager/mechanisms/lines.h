/* The connections of a taker: how they are opened, kept for the next touch, and asked. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_LINES_H
#define PAGEMOVE_PAGER_MECHANISMS_LINES_H

#include <pthread.h>
#include <stdint.h>

#include "pager/mechanisms/arrivals.h"
#include "pager/mechanisms/greeting.h"
#include "pager/mechanisms/pace.h"
#include "pager/mechanisms/wire.h"

enum {
    PG_NOT_READY = -2,          /* the giver was asked for nothing yet */
    PG_TOUCH_LINES = 3,         /* connections for what is touched */
    PG_LARGEST_PIECE = 1 << 20, /* bytes asked for at once, where a unit is no larger */
};

struct pg_line {
    struct pg_wire wire;
    int file; /* what it asks for the giver puts into this one; -1: it is sent; or PG_NOT_READY */
    int touches, idle;
    struct pg_line *next;
};

struct pg_taken {
    struct pg_taking taking; /* copies */
    struct pg_arrivals arrivals;
    struct pg_pace pace;
    pthread_mutex_t lock;
    pthread_cond_t freed; /* a line is idle, or there is one less */
    struct pg_line *lines;
    unsigned touch_lines; /* open, or being opened */
    int stopping, connected;
    int has_begun, running;  /* there was a connection; and all is being brought */
    int refused;             /* the giver has said no: its errno, */
    char refusal[PG_TEXT];   /* and its words */
    pthread_t thread, first; /* `first` opens a connection before it is needed */
    int has_thread, has_first;
};

/* Who has a connection is the owner: from then on all is brought. Wants the lock. */
int pg_line_begin(struct pg_taken *taken);

/* A connection on which nothing was asked yet; until then the giver may take the array back. 0 or
 * -errno, with a text where more is known. */
int pg_line_open(struct pg_taken *taken, int touches, struct pg_line **opened, char text[PG_TEXT]);
/* Have it be one to ask by. 0 or -errno: it is closed. */
int pg_line_make_ready(struct pg_taken *taken, struct pg_line *line);
void pg_line_close(struct pg_taken *taken, struct pg_line *line);

/* One for what is touched, for this thread alone. Opened where there is none; else it is waited
 * for: who opens one more waits for the giver's interpreter. `was_idle`: it may have been closed by
 * the other side since. */
int pg_line_take(struct pg_taken *taken, uint64_t deadline, struct pg_line **found, int *was_idle,
                 char text[PG_TEXT]);

/* Keep it for the next. */
void pg_line_keep(struct pg_taken *taken, struct pg_line *line);

/* Ask for units, or say that they are here. 0 or -errno. */
int pg_line_ask(const struct pg_line *line, int kind, struct pg_units run);

/* Receive what was asked for: into `bytes`, unless the line has a file. `zero`: it is. 0, or
 * -errno; `said`: it is the giver's that it cannot read it, and the line is as good as before. */
int pg_line_hear(const struct pg_line *line, struct pg_units run, uint64_t length, void *bytes,
                 int *zero, int *said, char text[PG_TEXT]);

/* pulling.c: bring all there is, until it is here and the giver knows. */
void *pg_pull(void *taken);

#endif

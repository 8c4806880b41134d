/* How a helper gets its requests: by memory that both processes have.
 *
 * A lane has a letter there, whose first word the helper's thread sleeps on. Of a small block that
 * the helper has put into the region nothing is sent back: it says so in the letter, and the pager
 * looks there when it is awake anyway. So that costs one switch between processes less than an
 * answer by the lane's socket, by which all others come: failures, and what somebody waits for. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_MAIL_H
#define PAGEMOVE_PAGER_MECHANISMS_MAIL_H

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#include "pager/mechanisms/config.h"

/* Of a lane. With an address, what has been read is copied there by the helper itself. */
struct pg_errand {
    uint32_t operation, protect;
    uint64_t offset, length, address;
};

/* `number`: of the last request, and which helper it is for: a thread of the pager may still write
 * to one that has ended when the next has come. Even; they wrap, but a lane has one at a time. */
struct pg_letter {
    uint32_t number;
    uint32_t asleep; /* the helper may sleep until there is another number */
    uint32_t answer; /* the number: the answer may be given here; and one more: it was; else not */
    uint32_t woken;  /* the number, when the helper has woken who waited for the block */
    struct pg_errand request;
    uint32_t taken;   /* the number, when a thread of the helper has begun with it */
    uint32_t cut_off; /* of the first lane alone: pg_desk_note_cut_off */
    uint32_t unused[2];
};

_Static_assert(sizeof(struct pg_letter) == 64, "each has a cache line of its own");

/* Bytes that the letters of all lanes take behind their buffers. */
uint64_t pg_mail_bytes(void);

/* The pager's side. */

/* Ask for something, with a number behind the last; returns that. `quietly`: once the block is in
 * the region nothing need come by the socket. */
uint32_t pg_mail_ask(struct pg_letter *letter, const struct pg_errand *request, unsigned generation,
                     uint32_t last, int quietly);

/* Whether that request was answered here, and how far that is: 0, or one of these. */
enum { PG_WOKEN = 1, PG_PLACED }; /* PG_PLACED: whoever waits for the block may not be woken yet */
int pg_mail_answered(const struct pg_letter *letter, uint32_t number);

/* Whether a thread of the helper has begun with that request. If not, none of one that has ended
 * will. */
int pg_mail_taken(const struct pg_letter *letter, uint32_t number);

/* Whether the helper of that generation has ended since its descriptors were closed. */
int pg_mail_is_cut_off(const struct pg_letter *letters, unsigned generation);

/* Have the answer come by the socket after all. Whether it was given here already. */
int pg_mail_listen(struct pg_letter *letter, uint32_t number);

/* The helper's side. */

/* What its threads that serve one region share. */
struct pg_desk {
    struct pg_letter *letters;
    unsigned generation;
    int region;
    pid_t process; /* the helper */
    pthread_mutex_t gate;
    int gone;         /* nothing is to be put into the region any more */
    int ended;        /* there will be no more requests */
    unsigned waiting; /* threads that wait for one */
    uint32_t seen[PG_LANES];
};

/* What was asked before is for others. */
void pg_desk_open(struct pg_desk *desk, void *letters, unsigned generation, int region);

/* Wait for a request on a lane. 0; -ESHUTDOWN: there is none any more. */
int pg_desk_wait(struct pg_desk *desk, uint32_t lane);

/* Copy what was read to where the request of a lane wants it, say so, and wake who waits there. 0
 * or -errno; 1: it is to be said by the socket. -ECHILD: the store has forked this process. */
int pg_desk_place(struct pg_desk *desk, uint32_t lane, uint64_t source);

/* Have those who wait return, and wait until they have. */
void pg_desk_end(struct pg_desk *desk);

/* This process is about to end, for a store in it has closed descriptors that are not its own.
 * There is no socket by which to say so. */
void pg_desk_note_cut_off(struct pg_desk *desk);

/* Put nothing into the region from now on: then its descriptor can be closed. */
void pg_desk_leave(struct pg_desk *desk);

#endif

/* Unnamed files for blocks that compressed memory has no room for, or that do not shrink. Included
 * by kept.h, and by carried.c, forks.c and setup.c for what a fork has to do with them.
 *
 * A block has a place in one of them. What a fork has found in a file stays as it is there for as
 * long as another process has that file. Who has made it goes on behind that; a child writes to a
 * file of its own. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_SPILLED_H
#define PAGEMOVE_PAGER_MECHANISMS_SPILLED_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pager/mechanisms/config.h"

/* Most have one. A child has one more than its parent. */
enum { PG_SPILLS = 64 };

/* Places that no block has. */
struct pg_places {
    uint32_t *at, count, room;
};

struct pg_spill {
    int fd;                  /* -1: there is none */
    int lent;                /* the same file in the program's table, while it is forked; or -1 */
    int own;                 /* this process writes to it */
    uint32_t used, end;      /* places that blocks have; behind the last that one ever had */
    uint32_t frozen;         /* of places before this others may have blocks */
    struct pg_places unused; /* behind that */
    struct pg_places left;   /* before that: they are used again when nobody else has the file */
};

struct pg_spills {
    const char *directory;
    uint64_t block_size;
    struct pg_spill files[PG_SPILLS];
};

/* A place of a block. */
struct pg_spilled {
    uint32_t place;
    uint8_t file;
};

void pg_spills_init(struct pg_spills *spills, const char *directory, uint64_t block_size);
void pg_spills_begin(struct pg_spills *spills, int first); /* with this file */
void pg_spills_free(struct pg_spills *spills);

/* All but pg_room_to_spill, pg_spills_lend and pg_spills_take_back are for the pager's threads,
 * which have the files. Those that end in "place" want the lock of the memory. */

/* A place to write a block to. 0 or -errno. */
int pg_take_place(struct pg_spills *spills, struct pg_spilled *at);

/* Whether no other process may read a place. */
int pg_is_own_place(const struct pg_spills *spills, struct pg_spilled at);

/* The bytes of a place are not needed any more. */
void pg_give_place(struct pg_spills *spills, struct pg_spilled at);

/* Without the lock, of a place that stays what it is meanwhile. */

/* 0 or -errno; -PG_NOT_NOW with `nowait`: it is not in the page cache. */
int pg_read_spilled(const struct pg_spills *spills, struct pg_spilled at, char *to, int nowait);
int pg_write_spilled(const struct pg_spills *spills, struct pg_spilled at, const char *bytes);

/* Have the file system take the bytes of a place back, which is given up next. */
void pg_empty_spilled(const struct pg_spills *spills, struct pg_spilled at);

/* Bytes of the directory's file system that a block may still have. */
uint64_t pg_room_to_spill(const struct pg_spills *spills);

/* For a fork. They want the lock. */

/* Have all of those whose other processes have ended. */
void pg_spills_thaw(struct pg_spills *spills);

/* Whoever has these from now on finds what blocks they have as it is. */
void pg_spills_freeze(struct pg_spills *spills);

/* Open them for the table of the thread that calls this, out of that of thread `owner`. 0 or
 * -errno; in either case pg_spills_take_back is to follow, or in the child pg_spills_accept. */
int pg_spills_lend(struct pg_spills *spills, pid_t owner);
void pg_spills_take_back(struct pg_spills *spills);

/* These are the ones to read from now on. */
void pg_spills_accept(struct pg_spills *spills);

/* Their descriptors: how many. */
size_t pg_spills_descriptors(const struct pg_spills *spills, int fds[PG_SPILLS]);

#endif

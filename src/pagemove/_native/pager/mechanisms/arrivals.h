/* What has arrived of an array that another process hands over: in which of some unnamed files
 * each unit is, and which units are still missing.
 *
 * Only the thread that has claimed a unit brings it, and no thread reads it before it is there. A
 * unit that was only asked for, in the background, any thread may claim.
 *
 * The giver puts what a connection asks for into a file that is that connection's alone. So what it
 * puts there late, when the connection has broken and the unit has come by another, and has perhaps
 * been written here since, is where nobody looks. File 0 is never the giver's. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_ARRIVALS_H
#define PAGEMOVE_PAGER_MECHANISMS_ARRIVALS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Of a unit that is here, PG_HERE and the number of its file. */
enum { PG_MISSING, PG_ASKED, PG_UNDER_WAY, PG_HERE };
enum { PG_ARRIVAL_FILES = 250 };

struct pg_arrivals {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t nbytes, unit;
    uint32_t units, missing;
    uint8_t *states;
    char *directory; /* of the files; NULL: memory */
    struct {
        int fd;
        uint32_t held; /* units that are in it, and one for the connection that has it */
    } files[PG_ARRIVAL_FILES];
    int spoilt; /* what is a hole in file 0 may have been written, and not as it should be */
};

/* Units that follow each other, but for `end`. */
struct pg_units {
    uint32_t first, end;
};

/* 0 or -errno. */
int pg_arrivals_open(struct pg_arrivals *arrivals, uint64_t nbytes, uint64_t unit,
                     const char *directory);
void pg_arrivals_close(struct pg_arrivals *arrivals);

/* A file for a connection: its number, or -errno. `drop`: the connection has ended. */
int pg_arrivals_file(struct pg_arrivals *arrivals);
void pg_arrivals_drop_file(struct pg_arrivals *arrivals, int file);

/* The units that some bytes are of; and the bytes of units, the first and how many. */
struct pg_units pg_units_of(const struct pg_arrivals *arrivals, uint64_t offset, uint64_t length);
uint64_t pg_units_at(const struct pg_arrivals *arrivals, struct pg_units run, uint64_t *length);

/* The first run of up to `most` units, of some, that nobody asks for or has: it is asked for. 0:
 * there is none. */
int pg_ask_units(struct pg_arrivals *arrivals, struct pg_units among, uint32_t most,
                 struct pg_units *run);

/* Of a run what nobody has claimed since will not come. */
void pg_unask_units(struct pg_arrivals *arrivals, struct pg_units run);

/* The same for the caller to bring; with `asked`, also such as were asked for. */
int pg_claim_units(struct pg_arrivals *arrivals, struct pg_units among, uint32_t most, int asked,
                   struct pg_units *run);

/* What was claimed is here, in a file; or it is not. */
void pg_land_units(struct pg_arrivals *arrivals, struct pg_units run, int file);
void pg_drop_units(struct pg_arrivals *arrivals, struct pg_units run);

int pg_units_are_here(struct pg_arrivals *arrivals, struct pg_units run);

/* Wait until none of a run is under way any more, nor, until `overdue`, asked for. 0 or -ETIMEDOUT;
 * -ECANCELED once `stopping`. */
int pg_await_units(struct pg_arrivals *arrivals, struct pg_units run, uint64_t deadline,
                   uint64_t overdue, const int *stopping);

/* Units that are here, a bit each. */
void pg_arrival_bits(struct pg_arrivals *arrivals, uint8_t *bits);

/* Read or write bytes of units that are here. With `nowait`, -PG_NOT_NOW where that would have to
 * wait. 0, -errno, or -PG_SHORT: a file has been cut short. */
int pg_arrivals_read(struct pg_arrivals *arrivals, uint64_t offset, const struct iovec *vector,
                     size_t count, uint64_t total, int nowait);
int pg_arrivals_write(struct pg_arrivals *arrivals, uint64_t offset, const struct iovec *vector,
                      size_t count, uint64_t total);

/* Put the bytes of claimed units, which are in pieces from byte `from` on, into file 0; NULL: they
 * are zero. 0 or -errno. */
int pg_arrivals_fill(struct pg_arrivals *arrivals, struct pg_units run, const struct iovec *vector,
                     size_t count, uint64_t from);

/* 0 when no write to a file has failed since. */
int pg_arrivals_sync(struct pg_arrivals *arrivals);

#endif

/* The connection between who hands an array over and who takes it, as pagemove/stores/wire.py
 * describes it: what is said on it, and how it is sent and received whole. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_WIRE_H
#define PAGEMOVE_PAGER_MECHANISMS_WIRE_H

#include <stddef.h>
#include <stdint.h>

enum { PG_WIRE_VERSION = 2 };

/* What a taker asks; and of answers, that all is zero, and that the bytes are in its file. */
enum { PG_ASK_READ = 1, PG_ACKNOWLEDGE, PG_HAVE, PG_ORDER, PG_ZEROS, PG_FILE, PG_IN_FILE };

struct pg_wire_request {
    uint8_t kind, unused[7];
    uint64_t first, count;
};

struct pg_wire_answer {
    uint8_t kind, unused[3];
    int32_t error;
    uint64_t first, count, length; /* of what follows, but for PG_IN_FILE, in bytes */
};

/* Whether the bytes that were sent before are what they should be. */
struct pg_wire_verdict {
    int32_t error;
    uint32_t length; /* of a text that follows */
};

_Static_assert(sizeof(struct pg_wire_request) == 24, "as wire.REQUEST");
_Static_assert(sizeof(struct pg_wire_answer) == 32, "as wire.ANSWER");
_Static_assert(sizeof(struct pg_wire_verdict) == 8, "as wire.VERDICT");

struct pg_wire {
    int fd;
    uint64_t patience; /* ns that each part of what is received, or sent, may take */
    uint64_t deadline; /* until then all of it has to be through */
    const int *stopping;
};

/* Send or receive all of it. 0 or -errno: -ECONNRESET where the other side has closed it,
 * -ETIMEDOUT, -ECANCELED once `stopping`. Interrupted by shutdown(2). */
int pg_wire_send(const struct pg_wire *wire, const void *bytes, size_t length);
int pg_wire_receive(const struct pg_wire *wire, void *bytes, size_t length);

/* The same with a descriptor, which the other side gets a copy of. */
int pg_wire_pass(const struct pg_wire *wire, const void *bytes, size_t length, int fd);

/* Wait until it can be sent to or received from (POLLIN, POLLOUT). 0 or -errno. */
int pg_wire_wait(const struct pg_wire *wire, short events);

#endif

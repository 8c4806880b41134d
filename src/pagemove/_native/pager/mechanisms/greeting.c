#define _GNU_SOURCE
#include "pager/mechanisms/greeting.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/proof.h"

static const char giving[17] = "pagemove giving\n", taking_[17] = "pagemove taking\n";

enum { NUMBER = 32 };

struct hello {
    char magic[16];
    uint16_t version, asks; /* whether a secret is used */
    uint8_t number[NUMBER];
};

struct want {
    struct hello hello;
    uint8_t proof[PG_PROOF];
    uint32_t length;
};

struct reply {
    int32_t error;
    uint8_t proof[PG_PROOF];
    uint32_t length;
};

_Static_assert(sizeof(struct hello) == 52, "as wire._HELLO");
_Static_assert(sizeof(struct want) == 88, "as wire._WANT");
_Static_assert(sizeof(struct reply) == 40, "as wire._REPLY");

static int user_of(int fd, uid_t *user)
{
    struct ucred peer;
    socklen_t length = sizeof peer;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length))
        return -errno;
    *user = peer.uid;
    return 0;
}

static int is_unix(int fd)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;

    return !getsockname(fd, (struct sockaddr *)&name, &length) && name.ss_family == AF_UNIX;
}

int pg_is_trusted(int fd)
{
    uid_t user = (uid_t)-1;

    return is_unix(fd) && !user_of(fd, &user) && (user == geteuid() || !user);
}

/* As wire.quicken: small frames go at once, and a machine that is gone is noticed. */
static void quicken(int fd, uint64_t patience)
{
    int milliseconds = patience < UINT64_C(1000000000)      ? 1000
                       : patience > UINT64_C(1000000000000) ? 1000000
                                                            : (int)(patience / 1000000);
    const struct {
        int level, name, value;
    } options[] = {{IPPROTO_TCP, TCP_NODELAY, 1},
                   {SOL_SOCKET, SO_KEEPALIVE, 1},
                   {IPPROTO_TCP, TCP_KEEPIDLE, milliseconds / 1000},
                   {IPPROTO_TCP, TCP_KEEPINTVL, milliseconds / 1000},
                   {IPPROTO_TCP, TCP_KEEPCNT, 3},
                   {IPPROTO_TCP, TCP_USER_TIMEOUT, milliseconds}};

    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value,
                   sizeof options[i].value);
}

static int connect_to(const struct pg_taking *taking, struct pg_wire *wire)
{
    const struct sockaddr *address = taking->address;
    socklen_t length = sizeof(int);
    int error = 0;

    if (address->sa_family != AF_UNIX)
        quicken(wire->fd, wire->patience);
    for (;;) {
        if (!connect(wire->fd, address, taking->address_length))
            return 0;
        if (errno == EINTR)
            continue;
        if (errno == EINPROGRESS)
            break;
        if (errno != EAGAIN)
            return -errno;
        /* A Unix socket with as many as it takes: nothing says when it takes more. */
        if (pg_now() >= wire->deadline)
            return -ETIMEDOUT;
        if (__atomic_load_n(wire->stopping, __ATOMIC_ACQUIRE))
            return -ECANCELED;
        pg_sleep(UINT64_C(2000000));
    }
    error = pg_wire_wait(wire, POLLOUT);
    if (error)
        return error;
    return getsockopt(wire->fd, SOL_SOCKET, SO_ERROR, &error, &length) ? -errno : -error;
}

static void prove(const struct pg_taking *taking, const char *who, const struct hello *theirs,
                  const struct want *mine, struct pg_bytes body, uint8_t proof[PG_PROOF])
{
    /* All but the body have a fixed length. */
    const struct pg_bytes parts[] = {
        {who, 5}, {theirs->number, NUMBER}, {mine->hello.number, NUMBER}, body};

    memset(proof, 0, PG_PROOF);
    if (taking->secret.at)
        pg_hmac(taking->secret, parts, sizeof parts / sizeof *parts, proof);
}

static int check_hello(const struct pg_taking *taking, const struct hello *hello, int *refused,
                       char text[PG_TEXT])
{
    if (memcmp(hello->magic, giving, sizeof hello->magic)) {
        strcpy(text, "what answers there is not handing over an array");
        return -EPROTO;
    }
    *refused = 1;
    if (hello->version != PG_WIRE_VERSION) {
        snprintf(text, PG_TEXT,
                 "the giver speaks version %d of the protocol, and this is %d: have the same "
                 "version of pagemove on both sides",
                 hello->version, PG_WIRE_VERSION);
        return -EPROTO;
    }
    if (!hello->asks != !taking->secret.at) {
        strcpy(text, hello->asks
                         ? "the giver asks for a secret: pass storage_options={'secret': ...}"
                         : "the giver has no secret, and this side was given one: serve it with "
                           "the same");
        return -EACCES;
    }
    *refused = 0;
    return 0;
}

/* What the giver says to it. */
static int hear(const struct pg_taking *taking, const struct pg_wire *wire,
                const struct hello *hello, const struct want *want, int *refused,
                char text[PG_TEXT])
{
    struct reply reply;
    uint8_t proof[PG_PROOF];
    int error = pg_wire_receive(wire, &reply, sizeof reply);

    /* Of what is wanted there is nothing to say but why not. */
    if (!error && reply.length >= PG_TEXT)
        error = -EPROTO;
    if (!error)
        error = pg_wire_receive(wire, text, reply.length);
    if (error) {
        text[0] = 0;
        return error;
    }
    text[reply.length] = 0;
    prove(taking, "giver", hello, want, (struct pg_bytes){text, reply.length}, proof);
    *refused = reply.error != 0 && reply.error != EAGAIN && reply.error != EINPROGRESS;
    if (reply.error != EACCES && !pg_same_proof(proof, reply.proof)) {
        *refused = 1;
        strcpy(text, "the giver does not have the secret: it may be another program");
        return -EACCES;
    }
    return reply.error > 0 && reply.error < PG_SHORT ? -reply.error : reply.error ? -EIO : 0;
}

static int check_user(const struct pg_taking *taking, int fd, int *refused, char text[PG_TEXT])
{
    uid_t user = 0;
    int error;

    if (!is_unix(fd) || taking->secret.at)
        return 0;
    error = user_of(fd, &user);
    if (error || user == geteuid() || !user)
        return error;
    *refused = 1;
    snprintf(text, PG_TEXT,
             "what serves there runs as user %u, and this is user %u: use a directory that nobody "
             "else can write to, or give both sides the same secret",
             (unsigned)user, (unsigned)geteuid());
    return -EACCES;
}

int pg_greet(const struct pg_taking *taking, struct pg_wire *wire, int *refused, char text[PG_TEXT])
{
    struct hello hello;
    struct want want = {.length = (uint32_t)taking->want.length};
    int error;

    *refused = 0;
    text[0] = 0;
    wire->deadline = pg_later(pg_now(), wire->patience);
    error = connect_to(taking, wire);
    if (!error)
        error = check_user(taking, wire->fd, refused, text);
    if (!error)
        error = pg_wire_receive(wire, &hello, sizeof hello);
    if (!error)
        error = check_hello(taking, &hello, refused, text);
    if (!error && getrandom(want.hello.number, NUMBER, 0) != NUMBER)
        error = -EIO;
    if (error)
        return error;
    memcpy(want.hello.magic, taking_, sizeof want.hello.magic);
    want.hello.version = PG_WIRE_VERSION;
    want.hello.asks = hello.asks;
    prove(taking, "taker", &hello, &want, taking->want, want.proof);
    /* The switch may take the giver a while. */
    wire->deadline = pg_later(pg_now(), wire->patience);
    error = pg_wire_send(wire, &want, sizeof want);
    if (!error)
        error = pg_wire_send(wire, taking->want.at, taking->want.length);
    if (!error)
        error = hear(taking, wire, &hello, &want, refused, text);
    wire->deadline = UINT64_MAX;
    return error;
}

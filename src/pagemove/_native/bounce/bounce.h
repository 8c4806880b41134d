/* A library to be preloaded (LD_PRELOAD): reads and writes of files and sockets that copy through
 * ordinary memory where theirs is paged, and the kernel may not wait for it.
 *
 * Always, not only after EFAULT: by then a datagram is gone. It has no state but the place of paged
 * memory, so any thread, and a child made by fork, may call it at any time. Never includes
 * Python.h. The C library's functions of the same names are called for whatever is elsewhere. */
#ifndef PAGEMOVE_BOUNCE_H
#define PAGEMOVE_BOUNCE_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define EXPORTED __attribute__((visibility("default")))

/* Bytes that are copied at once. */
enum { PB_PIECE = 256 << 10 };

/* Bounce what is in [from, to) from now on. */
EXPORTED void pagemove_bounce(uintptr_t from, uintptr_t to);

/* The function that this one stands before. */
#define BEHIND(name)                                                                               \
    ({                                                                                             \
        static void *slot;                                                                         \
        (__typeof__(&name))pb_behind(&slot, #name);                                                \
    })
void *pb_behind(void **slot, const char *name);

enum pb_kind { PB_READ, PB_WRITE, PB_PREAD, PB_PWRITE, PB_RECEIVE, PB_SEND };

/* What is to be done, piece by piece. */
struct pb_call {
    enum pb_kind kind;
    int fd, flags, vector_flags; /* of messages; of preadv2 and pwritev2 */
    off_t offset;                /* -1 with vector_flags: the file's own */
    struct sockaddr *from;
    const struct sockaddr *to;
    socklen_t *from_length, to_length;
};

/* Whether to bounce: what cannot be right anyway is left to the kernel, which says so. */
int pb_is_paged(uintptr_t address, size_t nbytes);
int pb_are_paged(const struct iovec *parts, size_t count);

/* Bytes of parts that pb_are_paged has looked at. */
size_t pb_total(const struct iovec *parts, size_t count);

/* How much of a call goes at once: messages whole, and the rest in pieces. */
size_t pb_piece(const struct pb_call *call, size_t total);

/* Copy between a piece and what lies from byte `skip` of the parts on. */
void pb_copy(const struct iovec *parts, size_t skip, char *piece, size_t nbytes, int in);

/* Do a call; as it would return, with errno. */
ssize_t pb_bounce(const struct pb_call *call, const struct iovec *parts, size_t total);

#endif

/* The way to a helper process, where stores written in Python run.
 *
 * A callback into the interpreter of this process would wait for the GIL, which the touching thread
 * may hold. So another process runs the store, and each of its threads serves one lane: a socket
 * for requests and answers, and a buffer in a memfd for the bytes. A lane is used by one thread
 * here at a time, which waits for the answer, so lanes are as many as requests can be under way.
 */
#ifndef PAGEMOVE_PAGER_MECHANISMS_CHANNEL_H
#define PAGEMOVE_PAGER_MECHANISMS_CHANNEL_H

#include <stddef.h>
#include <stdint.h>

#include "pager/mechanisms/config.h"

struct pg_piece;
struct pg_channel;
struct pg_lane;

/* Start the helper and wait until it has its store. -errno; then `text` says why, if it could. The
 * helper gets the region's descriptor, so that it can put small blocks there itself. */
int pg_channel_open(const struct pg_helper *helper, int region, uint64_t timeout_ns,
                    struct pg_channel **opened, char text[PG_TEXT]);

/* The words of a helper's command line, ended by NULL. A copy, or NULL: no memory. */
char **pg_copy_arguments(const char *const *argv);
void pg_free_arguments(char **argv);

/* Wake everybody who waits for an answer; what they get from now on is -PG_NOT_ASKED. */
void pg_channel_stop(struct pg_channel *channel);

/* End the helper, and wait for that: 0, then it puts nothing into the region any more. -EBUSY: it
 * hangs in the kernel, and still may. Only after pg_channel_stop. */
int pg_channel_end(struct pg_channel *channel);

/* In a forked child only descriptors are let go: the helper is the parent's. */
void pg_channel_close(struct pg_channel *channel, int inherited);
void pg_channel_forget(struct pg_channel *channel);

/* Transfer pieces that follow each other in the store, and wait for it. 0 or -errno; then `text`
 * is what the helper says of it, or empty. It begins when no earlier write of the same bytes, or
 * earlier sync, is under way or of unknown outcome. */
int pg_channel_call(struct pg_channel *channel, int operation, uint64_t offset,
                    const struct pg_piece *pieces, size_t count, char text[PG_TEXT]);

/* Have something read and put at `address` by the helper, without waiting for it. -PG_NOT_NOW: no
 * lane is free. */
int pg_channel_ask(struct pg_channel *channel, uint64_t offset, uint64_t length, uint64_t address,
                   int protect, struct pg_lane **lane);

/* Whether a write of some of these bytes was given up, and has not been answered as far as is
 * known: that is looked at when a lane is taken. */
int pg_channel_is_late(struct pg_channel *channel, uint64_t offset, uint64_t length);

/* Readable when an answer has come that was not given in memory. */
int pg_lane_descriptor(const struct pg_lane *lane);

/* Whether the block that was asked for is in the region: as pg_mail_answered. */
int pg_lane_is_done(const struct pg_channel *channel, const struct pg_lane *lane);

/* Have the lane be readable also when that is so. Whether it is so already. */
int pg_lane_listen(struct pg_channel *channel, const struct pg_lane *lane);

/* The answer, and the lane is free again: 0, and `said` is 0 or -errno. -PG_NO_ANSWER: there is
 * none yet. */
int pg_channel_answer(struct pg_channel *channel, struct pg_lane *lane, int *said,
                      char text[PG_TEXT]);

/* Memory that the buffers of all lanes can take. */
uint64_t pg_channel_bytes(const struct pg_channel *channel);

/* Whether the helper may run the stores of other regions too. */
int pg_channel_shares(const struct pg_channel *channel);

/* How often the helper was started anew. */
uint64_t pg_channel_restarts(const struct pg_channel *channel);

#endif

/* A helper process that several regions share: which of them do, how one joins it and leaves it.
 *
 * Each region has a channel of its own to it, as to a process of its own: sockets, buffers, and a
 * control socket whose end means that the region is done. The process has a thread for each lane of
 * each region. It ends with the last of them. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_HOST_H
#define PAGEMOVE_PAGER_MECHANISMS_HOST_H

#include <stdint.h>

struct pg_channel;
struct pg_host;

/* What this process knows of one that is, or will be, shared. NULL: no memory. Held by who has made
 * it, and by each region's channel. */
struct pg_host *pg_host_new(void);
struct pg_host *pg_host_hold(struct pg_host *host);
void pg_host_release(struct pg_host *host);

/* How many regions share it now. */
unsigned pg_host_members(const struct pg_host *host);

/* Make the channel one of those that share its host. By its door, where a process runs already:
 * then the channel has a pidfd, and the control socket is returned. Else -errno or
 * -PG_NO_ANSWER, and a process is to be started, to be shared if the door is new. */
int pg_host_join(struct pg_channel *channel);

/* It is none of them any more. Twice is fine. */
void pg_host_leave(struct pg_channel *channel);

/* Whether other regions share the helper of a channel, and whether any have. */
int pg_has_company(const struct pg_channel *channel);
int pg_had_company(const struct pg_channel *channel);

/* Wait for a shared helper to be done with a region that has shut its control socket down: 1, and
 * nothing that it was asked for can happen any more. 0: not so far. */
int pg_host_lets_go(int control, int process, uint64_t patience);

#endif

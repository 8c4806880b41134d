/* Calls of the program that are not to be waited for any longer, and end early. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_INTERRUPTION_H
#define PAGEMOVE_PAGER_MECHANISMS_INTERRUPTION_H

/* What threads of the program ask now and then while they wait for a region to be opened or closed,
 * or for a call: not 0, they return -PG_INTERRUPTED at once. What they have asked for then ends as
 * soon as it can, between two blocks, in the pager's own threads. For all regions. */
void pg_ask_while_waiting(int (*may_wait_no_longer)(void));

/* Ask that. */
int pg_may_wait_no_longer(void);

/* Whether the call that this thread makes, if it makes one, is to end as soon as it can: when this
 * flag is set, or with NULL never. */
int pg_is_called_off(void);
void pg_end_when(const int *flag);

#endif

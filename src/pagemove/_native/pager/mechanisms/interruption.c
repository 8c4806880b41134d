#include "pager/mechanisms/interruption.h"

#include <stddef.h>

#include "pager/mechanisms/threads.h"

static int (*may_wait_no_longer)(void);

static PG_THREAD_LOCAL const int *called_off;

void pg_ask_while_waiting(int (*ask)(void))
{
    may_wait_no_longer = ask;
}

int pg_may_wait_no_longer(void)
{
    return may_wait_no_longer && may_wait_no_longer();
}

int pg_is_called_off(void)
{
    return called_off && __atomic_load_n(called_off, __ATOMIC_ACQUIRE);
}

void pg_end_when(const int *flag)
{
    called_off = flag;
}

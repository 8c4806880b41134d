#include "pager/state/terms.h"

#include <errno.h>

int pg_errno_of(int code)
{
    if (code == PG_SHORT || code == PG_NOT_DURABLE)
        return 0;
    if (code == PG_NO_ANSWER)
        return ETIMEDOUT;
    if (code == PG_GONE || code == PG_NOT_ASKED)
        return EPIPE;
    if (code == PG_NO_MEMORY)
        return ENOMEM;
    if (code == PG_LOST)
        return EBADF;
    return code == PG_NOT_NOW ? EBUSY : code;
}

#include "pager/mechanisms/guard.h"

#include <errno.h>

int pg_has_moved(const struct pg_uffd *uffd, int64_t error, uint64_t dst, uint64_t src)
{
    return (error == -EEXIST || error == -ENOENT) && !pg_is_there(uffd, src) &&
           pg_is_there(uffd, dst);
}

#include "pager/mechanisms/limits.h"

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>

struct known {
    int error, resource;
    const char *whose, *of;
};

static const struct known all[] = {
    {EMFILE, RLIMIT_NOFILE, "process", "descriptors (RLIMIT_NOFILE): ulimit -n"},
    {EAGAIN, RLIMIT_NPROC, "user",
     "processes and threads (RLIMIT_NPROC): ulimit -u; or pids.max of its cgroup is less"},
    {ENOMEM, RLIMIT_AS, "process", "bytes of addresses (RLIMIT_AS): ulimit -v"},
    {ENOMEM, RLIMIT_DATA, "process", "bytes of data (RLIMIT_DATA): ulimit -d"},
};

void pg_name_limit(int error, char text[PG_LIMIT_TEXT])
{
    struct rlimit limit;

    text[0] = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i].error != error || getrlimit(all[i].resource, &limit) ||
            limit.rlim_cur == RLIM_INFINITY)
            continue;
        snprintf(text, PG_LIMIT_TEXT, "; the %s may have %llu %s", all[i].whose,
                 (unsigned long long)limit.rlim_cur, all[i].of);
        return;
    }
    if (error == ENOMEM)
        snprintf(
            text, PG_LIMIT_TEXT,
            "; its cgroup's memory.max or vm.max_map_count may be behind it (pagemove doctor)");
}

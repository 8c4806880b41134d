/* How much a taker asks for ahead, for tests: see pager/mechanisms/pace.h. */
#include <inttypes.h>
#include <stdio.h>

#include "pager/mechanisms/pace.h"

/* Lines of input: "unit N", "heard NS", "came BYTES NS". After each, what may be asked for. */
int main(void)
{
    struct pg_pace pace = {.unit = 65536};
    uint64_t one, other;
    char line[100];

    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "unit %" SCNu64, &one) == 1)
            pace = (struct pg_pace){.unit = one};
        else if (sscanf(line, "heard %" SCNu64, &one) == 1)
            pg_heard_after(&pace, one);
        else if (sscanf(line, "came %" SCNu64 " %" SCNu64, &one, &other) == 2)
            pg_came_after(&pace, one, other);
        else
            return 2;
        printf("%" PRIu64 " %" PRIu64 "\n", pg_ahead(&pace), pace.round_trip);
        fflush(stdout);
    }
    return 0;
}

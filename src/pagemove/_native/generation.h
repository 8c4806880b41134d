/* Which process this is: a number that is another in every process of a line of forks, as a pid is
 * not, which is reused. */
#ifndef PAGEMOVE_GENERATION_H
#define PAGEMOVE_GENERATION_H

#include <stdint.h>

/* Prepare, once, before there are threads. 0 or -errno. */
int pm_generation_start(void);

/* The number of this process. */
uint64_t pm_generation(void);

/* Likewise, but 0 in a child made by fork until it has asked for its own. */
uint64_t pm_generation_known(void);

#endif

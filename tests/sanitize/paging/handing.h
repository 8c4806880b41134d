/* Arrays that are handed over, under the compiler's sanitizers. */
#ifndef HANDING_H
#define HANDING_H

#include <stdint.h>

/* Hand one over within this process while threads read and write it; with `cuts`, over connections
 * that are lost now and then. Ends the process if a word is not what it should be. */
void hand_over(uint64_t seed, uint64_t block_size, int cuts);

#endif

/* A checksum of bytes that leave this process's memory, to be compared when they come back. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_CHECKSUM_H
#define PAGEMOVE_PAGER_MECHANISMS_CHECKSUM_H

#include <stdint.h>
#include <string.h>

/* Every word is multiplied by an odd number after it was added to what came before in its lane: no
 * change of one word goes unnoticed, and of several only one in 2^64. `length` is a multiple of 32.
 */
static inline uint64_t pg_checksum(const void *bytes, uint64_t length)
{
    const uint64_t odd = UINT64_C(0x9E3779B97F4A7C15);
    uint64_t lanes[4] = {1, 2, 3, 4}, words[4], sum = length;

    for (uint64_t at = 0; at < length; at += sizeof words) {
        memcpy(words, (const char *)bytes + at, sizeof words);
        for (unsigned i = 0; i < 4; i++) {
            lanes[i] = (lanes[i] ^ words[i]) * odd;
            lanes[i] ^= lanes[i] >> 29;
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        sum = (sum ^ lanes[i]) * odd;
        sum ^= sum >> 32;
    }
    return sum;
}

#endif

/* Bytes of numbers put together by their place in the number: an array of 64-bit integers has eight
 * runs of bytes, of which most hardly change, and what finds repeated bytes finds them there. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_SHUFFLE_H
#define PAGEMOVE_PAGER_MECHANISMS_SHUFFLE_H

#include <stddef.h>

enum pg_filter { PG_PLAIN, PG_WORDS8, PG_WORDS4, PG_FILTERS };

/* Lengths are multiples of 512. `to` and `from` do not overlap, and need no alignment. */
void pg_shuffle(enum pg_filter filter, void *to, const void *from, size_t length);
void pg_unshuffle(enum pg_filter filter, void *to, const void *from, size_t length);

#endif

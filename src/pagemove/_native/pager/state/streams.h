/* Where readers are going: faults at a constant distance from one another. */
#ifndef PAGEMOVE_PAGER_STATE_STREAMS_H
#define PAGEMOVE_PAGER_STATE_STREAMS_H

#include <stdint.h>

#include "pager/state/blocks.h"

enum { PG_STREAMS = 8 };

struct pg_stream {
    int64_t last, stride, ahead; /* ahead: the farthest block asked for */
    int64_t written; /* the last of its blocks that was stored to when it was not to be dirty */
    uint32_t run, window;
    uint64_t used; /* when, in faults: the longest unused is replaced */
};

struct pg_streams {
    struct pg_stream at[PG_STREAMS];
    uint32_t doubt; /* beginnings of a sequence that went no further, less those that did */
};

/* The stream that the touch of a block belongs to, or begins. */
struct pg_stream *pg_follow(struct pg_streams *streams, const struct pg_blocks *blocks,
                            int64_t number);

/* Whether it goes on, as far as that can be known. Blocks touched at random are neighbours now and
 * then, and those of a search in the end always. Where sequences seldom go on, more has to be seen
 * of one before anything is read. */
int pg_is_certain(const struct pg_streams *streams, const struct pg_stream *stream);

/* A clean block has been stored to: by whoever goes this way, if it is near a stream. */
void pg_note_written(struct pg_streams *streams, int64_t number);

/* Whether the blocks of a stream are stored to, as far as that can be known. */
int pg_is_written(const struct pg_stream *stream);

#endif

#include "pager/state/streams.h"

#include <stdlib.h>

/* Farther away than any block. */
#define NEVER (INT64_C(1) << 40)

enum {
    FARTHEST_STRIDE =
        64,           /* blocks; farther apart, two touches have nothing to do with each other */
    MOST_SKIPPED = 8, /* blocks */
    DOUBTFUL = 2,
    MOST_DOUBT = 18,
    NEAR = 16, /* steps */
};

/* Whether a reader may have come from one block to another without a fault in between. */
static int is_mapped_between(const struct pg_blocks *blocks, int64_t from, int64_t to,
                             int64_t stride)
{
    for (from += stride; from != to; from += stride) {
        pg_entry entry = pg_find(blocks, (uint32_t)from);
        if (entry == PG_NONE || blocks->at[entry].state != PG_RESIDENT)
            return 0;
    }
    return 1;
}

/* How many steps the touch of a block takes a stream further; 0: it is not part of it. Blocks that
 * were there before do not count. */
static int64_t steps(const struct pg_blocks *blocks, const struct pg_stream *stream, int64_t number)
{
    int64_t distance = number - stream->last, covered;

    if (stream->run < 2 || distance % stream->stride)
        return 0;
    distance /= stream->stride;
    covered = (stream->ahead - stream->last) / stream->stride;
    covered = covered > 0 ? covered : 0;
    if (distance < 1 || distance > covered + 1 + MOST_SKIPPED)
        return 0;
    if (distance <= covered + 1)
        return distance;
    return is_mapped_between(blocks, stream->last + covered * stream->stride, number,
                             stream->stride)
               ? covered + 1
               : 0;
}

static struct pg_stream *continued(struct pg_streams *streams, const struct pg_blocks *blocks,
                                   int64_t number)
{
    for (int i = 0; i < PG_STREAMS; i++)
        if (steps(blocks, &streams->at[i], number))
            return &streams->at[i];
    return NULL;
}

/* A second touch near a first one: perhaps there is a stride. */
static struct pg_stream *perhaps_begun(struct pg_streams *streams, int64_t number)
{
    struct pg_stream *best = NULL;

    for (int i = 0; i < PG_STREAMS; i++) {
        struct pg_stream *stream = &streams->at[i];
        int64_t distance = llabs(number - stream->last);
        if (stream->run == 1 && distance && distance <= FARTHEST_STRIDE &&
            (!best || distance < llabs(number - best->last)))
            best = stream;
    }
    return best;
}

static struct pg_stream *replaced(struct pg_streams *streams)
{
    struct pg_stream *oldest = &streams->at[0];

    for (int i = 1; i < PG_STREAMS; i++)
        if (streams->at[i].used < oldest->used)
            oldest = &streams->at[i];
    return oldest;
}

/* How many steps make a sequence: one has followed two by chance more often than not, unless it is
 * to the next block. */
static uint32_t certain_from(const struct pg_stream *stream)
{
    return llabs(stream->stride) == 1 ? 2 : 3;
}

int pg_is_certain(const struct pg_streams *streams, const struct pg_stream *stream)
{
    return stream->run >= certain_from(stream) + (streams->doubt > DOUBTFUL ? 2 : 0);
}

static void note_begun(struct pg_streams *streams, const struct pg_stream *stream, int went_on)
{
    if (stream->run != certain_from(stream))
        return;
    if (!went_on)
        streams->doubt += streams->doubt < MOST_DOUBT;
    else if (streams->doubt)
        streams->doubt--;
}

struct pg_stream *pg_follow(struct pg_streams *streams, const struct pg_blocks *blocks,
                            int64_t number)
{
    struct pg_stream *stream = continued(streams, blocks, number);

    if (stream) {
        if (number == stream->last + stream->stride)
            note_begun(streams, stream, 1);
        stream->run += (uint32_t)steps(blocks, stream, number);
        stream->last = number;
        return stream;
    }
    stream = perhaps_begun(streams, number);
    if (stream) {
        stream->stride = number - stream->last;
        stream->last = stream->ahead = number;
        stream->written = -NEVER;
        stream->run = 2;
        return stream;
    }
    stream = replaced(streams);
    note_begun(streams, stream, 0);
    *stream = (struct pg_stream){.last = number, .ahead = number, .run = 1};
    return stream;
}

/* Steps from one block of a stream to another. */
static int64_t between(const struct pg_stream *stream, int64_t from, int64_t to)
{
    return (to - from) / stream->stride;
}

void pg_note_written(struct pg_streams *streams, int64_t number)
{
    for (int i = 0; i < PG_STREAMS; i++) {
        struct pg_stream *stream = &streams->at[i];
        int64_t distance, covered;
        if (stream->run < 2)
            continue;
        distance = between(stream, stream->last, number);
        covered = between(stream, stream->last, stream->ahead);
        if (distance >= -NEAR && distance <= (covered > 0 ? covered : 0))
            stream->written = number;
    }
}

int pg_is_written(const struct pg_stream *stream)
{
    return llabs(between(stream, stream->written, stream->last)) <= NEAR;
}

/* The pager's state without threads, kernel or store: only the files of pager/state/ are linked.
 *
 *     state_alone CASE
 *
 * Ends with 0 if what the case expects is so; else a message says what was not. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pager/state/blocks.h"
#include "pager/state/counters.h"
#include "pager/state/frames.h"
#include "pager/state/jobs.h"
#include "pager/state/policy.h"
#include "pager/state/record.h"
#include "pager/state/streams.h"
#include "pager/state/terms.h"

#define EXPECT(what)                                                                               \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                              \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { FRAMES = 64, BLOCKS = 256, PAGE = 4096 };

static struct pg_blocks blocks;
static struct pg_frames frames;
static struct pg_policy policy;
static uint32_t late = UINT32_MAX;

static int is_late(const void *argument, uint32_t number)
{
    return number == *(const uint32_t *)argument;
}

static void start(uint32_t limit)
{
    frames = (struct pg_frames){.limited = 1, .limit = limit};
    policy = (struct pg_policy){
        .blocks = &blocks, .frames = &frames, .is_late = is_late, .argument = &late};
    EXPECT(!pg_frames_init(&frames, PAGE, 4, 8));
    EXPECT(!pg_blocks_init(&blocks, BLOCKS));
    EXPECT(!pg_ghosts_init(&policy, limit));
    pg_policy_share(&policy, limit, PAGE, 8 << 20, 16);
}

static void end(void)
{
    pg_frames_free(&frames);
    pg_blocks_free(&blocks);
    pg_ghosts_free(&policy);
}

static pg_entry bring(uint32_t number, int hot, int sequential)
{
    pg_entry entry = pg_begin(&blocks, number);

    EXPECT(entry != PG_NONE && pg_find(&blocks, number) == entry);
    blocks.at[entry].hot = hot & 1;
    blocks.at[entry].flags = sequential ? PG_SEQUENCE : 0;
    pg_become(&blocks, entry, PG_RESIDENT);
    pg_keep(&policy, entry, sequential);
    return entry;
}

/* The block that leaves first, and does. */
static uint32_t take_away(enum pg_choice choice)
{
    pg_entry entry = pg_choose(&policy, choice);
    uint32_t number;

    if (entry == PG_NONE)
        return UINT32_MAX;
    number = blocks.at[entry].number;
    pg_unlist(&blocks, entry);
    pg_remember(&policy, entry);
    pg_become(&blocks, entry, PG_ABSENT);
    return number;
}

static void test_frames(void)
{
    uint16_t slots[8], more;

    start(6);
    EXPECT(pg_is_tight(&frames) && pg_frames_shared(&frames) == 6);
    for (int i = 0; i < 6; i++) {
        slots[i] = pg_take_fresh(&frames);
        EXPECT(slots[i] != PG_NO_SLOT && pg_is_fresh_slot(&frames, slots[i]));
        for (int k = 0; k < i; k++)
            EXPECT(slots[k] != slots[i]);
    }
    EXPECT(frames.total == 6 && !pg_has_room(&frames));
    EXPECT(pg_take_fresh(&frames) == PG_NO_SLOT && pg_take_full(&frames) == PG_NO_SLOT);
    /* Recycled: the frame stays, and needs no room. */
    pg_give_full(&frames, slots[0]);
    EXPECT(pg_take_full(&frames) == slots[0] && frames.total == 6);
    /* Moved into a region: the slot is empty, the frame is still one of six. */
    pg_give_empty(&frames, slots[0]);
    EXPECT(pg_take_fresh(&frames) == PG_NO_SLOT);
    /* Given up: there is room for one more. */
    pg_note_given_up(&frames, slots[1]);
    EXPECT(frames.total == 5 && pg_take_fresh(&frames) != PG_NO_SLOT);
    for (int i = 0; i < 4; i++) {
        more = pg_take_outgoing(&frames);
        EXPECT(more != PG_NO_SLOT && !pg_is_fresh_slot(&frames, more));
        for (int k = 0; k < 6; k++)
            EXPECT(more != slots[k]);
    }
    EXPECT(pg_take_outgoing(&frames) == PG_NO_SLOT);
    /* What is pinned is not shared. */
    frames.limit = 40;
    EXPECT(!pg_is_tight(&frames));
    frames.pinned = 9;
    EXPECT(pg_is_tight(&frames) && pg_frames_shared(&frames) == 31);
    end();
}

static void test_jobs(void)
{
    struct pg_jobs jobs;
    struct pg_job job;
    uint32_t room;

    EXPECT(!pg_jobs_init(&jobs, 2));
    EXPECT(pg_jobs_next(&jobs) < 0 && pg_jobs_oldest(&jobs) < 0);
    EXPECT(!pg_jobs_put(&jobs, (struct pg_job){.number = 1, .began = 30, .slot = PG_NO_SLOT}));
    EXPECT(!pg_jobs_put(&jobs, (struct pg_job){.number = 2, .began = 20, .slot = PG_NO_SLOT}));
    EXPECT(!pg_jobs_put(
        &jobs, (struct pg_job){
                   .number = 3, .began = 10, .not_before = 50, .starved = 1, .slot = PG_NO_SLOT}));
    /* Of those that are due the one that waits longest. */
    EXPECT(jobs.at[pg_jobs_next(&jobs)].number == 2);
    EXPECT(jobs.at[pg_jobs_oldest(&jobs)].number == 3 && jobs.starving == 1);
    /* A frame comes: the one that lacks it is due. */
    pg_jobs_feed(&jobs);
    EXPECT(jobs.at[pg_jobs_next(&jobs)].number == 3);
    job = pg_jobs_take(&jobs, pg_jobs_next(&jobs));
    EXPECT(job.number == 3 && !job.starved && !jobs.starving && jobs.count == 2);
    EXPECT(pg_jobs_take(&jobs, pg_jobs_next(&jobs)).number == 2);
    EXPECT(pg_jobs_take(&jobs, pg_jobs_next(&jobs)).number == 1 && !jobs.count);
    /* More than there was room for; and there always is some for those that have a slot. */
    room = jobs.room;
    for (uint32_t i = 0; i < 2 * room; i++) {
        EXPECT(!pg_jobs_put(&jobs, (struct pg_job){.number = i, .began = i, .slot = PG_NO_SLOT}));
        EXPECT(jobs.room - jobs.count >= jobs.kept);
    }
    for (uint32_t i = 0; i < 2 * room; i++)
        EXPECT(pg_jobs_take(&jobs, pg_jobs_oldest(&jobs)).number == i);
    pg_jobs_free(&jobs);
}

/* After how many touches, `stride` blocks from one another, a sequence is certain. */
static int touches_until_certain(struct pg_streams *streams, int64_t stride)
{
    for (int i = 0; i < 10; i++)
        if (pg_is_certain(streams, pg_follow(streams, &blocks, 100 + i * stride)))
            return i + 1;
    return 0;
}

static void test_streams(void)
{
    struct pg_streams streams = {0};
    struct pg_stream *forwards, *backwards;

    start(FRAMES);
    EXPECT(touches_until_certain(&streams, 1) == 2);
    streams = (struct pg_streams){0};
    EXPECT(touches_until_certain(&streams, 7) == 3);
    streams = (struct pg_streams){0};
    EXPECT(touches_until_certain(&streams, -3) == 3);
    /* Farther apart they have nothing to do with each other. */
    streams = (struct pg_streams){0};
    EXPECT(touches_until_certain(&streams, 65) == 0);

    /* Two readers at once. */
    streams = (struct pg_streams){0};
    for (int i = 0; i < 4; i++) {
        forwards = pg_follow(&streams, &blocks, 10 + i);
        forwards->used = 2 * (uint64_t)i + 1;
        backwards = pg_follow(&streams, &blocks, 200 - i);
        backwards->used = 2 * (uint64_t)i + 2;
    }
    EXPECT(forwards != backwards && forwards->stride == 1 && backwards->stride == -1);
    EXPECT(forwards->run == 4 && backwards->run == 4);

    /* One stores to what it reads; the other has done so, and is farther now. */
    pg_note_written(&streams, forwards->last);
    pg_note_written(&streams, backwards->last);
    pg_note_written(&streams, 120); /* by neither */
    EXPECT(pg_is_written(forwards) && pg_is_written(backwards));
    for (int64_t i = 0; i < 16; i++)
        backwards = pg_follow(&streams, &blocks, backwards->last - 1);
    EXPECT(pg_is_written(backwards));
    backwards = pg_follow(&streams, &blocks, backwards->last - 1);
    EXPECT(pg_is_written(forwards) && !pg_is_written(backwards));

    /* Pairs of neighbours that go no further: each is forgotten, and then more has to be seen. */
    streams = (struct pg_streams){0};
    for (int64_t i = 0; i < 40; i++) {
        pg_follow(&streams, &blocks, i * 1000)->used = 2 * (uint64_t)i + 1;
        pg_follow(&streams, &blocks, i * 1000 + 1)->used = 2 * (uint64_t)i + 2;
    }
    EXPECT(streams.doubt > 2);
    EXPECT(!pg_is_certain(&streams, pg_follow(&streams, &blocks, 39002)));
    EXPECT(pg_is_certain(&streams, pg_follow(&streams, &blocks, 39003)));
    end();
}

static void test_record(void)
{
    struct pg_record record = {0};

    pg_record_needed(&record, 3);
    EXPECT(!record.count); /* nobody has asked for it */
    EXPECT(!pg_record_start(&record, 1 << 20));
    for (uint32_t i = 0; i < 5000; i++) {
        pg_record_needed(&record, i * 7 % 5003);
        pg_record_needed(&record, 0);
    }
    EXPECT(record.count == 5000);
    for (uint32_t i = 0; i < 5000; i++)
        EXPECT(record.numbers[i] == i * 7 % 5003);
    EXPECT(!pg_record_start(&record, 1 << 20) && record.count == 5000);
    pg_record_needed(&record, (1 << 20) - 1);
    EXPECT(record.numbers[5000] == (1 << 20) - 1);
    pg_record_free(&record);
}

static void test_who_leaves(void)
{
    start(FRAMES);
    for (uint32_t i = 0; i < 20; i++)
        bring(i, 0, 0);
    for (uint32_t i = 20; i < 40; i++)
        bring(i, 1, 0);
    /* Needed once: first, and the oldest of them, while there are more than wanted. */
    EXPECT(policy.once_wanted == FRAMES / 4);
    for (uint32_t i = 0; i < 20 - FRAMES / 4 + 1; i++)
        EXPECT(take_away(PG_CLEAN) == i);
    EXPECT(take_away(PG_CLEAN) == 20); /* then the oldest that is hot */
    end();

    /* A long scan pushes out nothing but itself, newest first, behind the reader. */
    start(FRAMES);
    for (uint32_t i = 0; i < 30; i++)
        bring(i, 1, 0);
    for (uint32_t i = 100; i < 134; i++)
        bring(i, 0, 1);
    EXPECT(blocks.length[PG_RECENT] == policy.recent_most);
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t number = take_away(PG_CLEAN);
        EXPECT(number >= 100);
        if (number < 134 + i)
            bring(number == 133 ? 134 + i : number, 0, 1);
    }
    EXPECT(blocks.length[PG_HOT] == 30);
    end();
}

static void test_what_stays(void)
{
    pg_entry entry;

    start(FRAMES);
    for (uint32_t i = 0; i < 20; i++) {
        entry = bring(i, 0, 0);
        pg_set_dirty(&blocks, entry, i < 3);
        if (i == 3)
            blocks.at[entry].flags |= PG_COPY_IN_FLIGHT;
    }
    late = 0;
    EXPECT(blocks.at[pg_choose(&policy, PG_CLEAN)].number == 4);
    EXPECT(blocks.at[pg_choose(&policy, PG_ANSWERED)].number == 1);
    EXPECT(blocks.at[pg_choose(&policy, PG_ANY)].number == 0);
    late = UINT32_MAX;
    EXPECT(blocks.at[pg_choose(&policy, PG_ANSWERED)].number == 0);
    EXPECT(blocks.dirty == 3);
    end();
}

static void test_missed(void)
{
    uint32_t once, first;

    start(FRAMES);
    /* From 1 on: 0 would be forgotten for 5. */
    for (uint32_t i = 1; i <= 40; i++)
        bring(i, 0, 0);
    once = policy.once_wanted;
    first = take_away(PG_CLEAN);
    EXPECT(pg_miss(&policy, first + 1, 0) == PG_NEW);
    EXPECT(pg_miss(&policy, first, 0) == PG_AGAIN_HOT);
    EXPECT(policy.once_wanted == once + 1); /* it would have stayed */
    /* What has left before as many others as there are frames is no loss. */
    for (uint32_t i = 0; i < 10; i++)
        take_away(PG_CLEAN);
    frames.limit = 10;
    EXPECT(pg_miss(&policy, first, 0) == PG_NEW);
    frames.limit = 11;
    EXPECT(pg_miss(&policy, first, 0) == PG_AGAIN);
    end();

    /* With few frames nothing is hot. */
    start(PG_TIGHT - 1);
    for (uint32_t i = 0; i < 20; i++)
        bring(i, 0, 0);
    first = take_away(PG_CLEAN);
    EXPECT(pg_miss(&policy, first, 0) == PG_AGAIN);
    end();
}

static void test_latency(void)
{
    for (uint64_t value = 0; value < UINT64_C(1) << 33; value += 1 + value / 37) {
        uint64_t histogram[PG_BUCKETS] = {0};
        size_t bucket = 0;

        pg_note_latency(histogram, value);
        while (!histogram[bucket])
            EXPECT(++bucket < PG_BUCKETS);
        EXPECT(value < pg_bucket_limit(bucket));
        EXPECT(!bucket || value >= pg_bucket_limit(bucket - 1));
    }
}

static void test_errnos(void)
{
    EXPECT(pg_errno_of(ENOSPC) == ENOSPC && pg_errno_of(PG_SHORT) == 0);
    EXPECT(pg_errno_of(PG_NO_ANSWER) == ETIMEDOUT && pg_errno_of(PG_GONE) == EPIPE);
    EXPECT(pg_errno_of(PG_LOST) == EBADF && pg_errno_of(PG_NOT_NOW) == EBUSY);
}

static void say(const char *line)
{
    fputs(line, stdout);
    fflush(stdout);
}

/* Ends the process: a block that is mapped cannot be under way to the store. */
static void test_lost_track(void)
{
    pg_entry entry;

    pg_last_words = say;
    start(FRAMES);
    entry = bring(7, 0, 0);
    pg_become(&blocks, entry, PG_WRITING);
}

static void test_in_place(void)
{
    pg_entry one, other;

    start(FRAMES);
    one = bring(1, 0, 0);
    other = bring(2, 0, 0);
    pg_set_dirty(&blocks, one, 1);
    pg_set_dirty(&blocks, other, 1);
    EXPECT(blocks.dirty == 2 && blocks.length[PG_ONCE] == 2);
    /* Stored, where it is; no longer one that may leave. */
    pg_set_in_place(&blocks, one, 1);
    EXPECT(blocks.in_place == 1 && blocks.dirty == 1 && blocks.length[PG_ONCE] == 1);
    pg_push_tail(&blocks, PG_IN_PLACE, one);
    EXPECT(pg_choose(&policy, PG_ANY) == other);
    EXPECT(take_away(PG_ANY) == 2 && take_away(PG_ANY) == UINT32_MAX);
    /* Written to or not, and tried again: on its way, as any other. */
    pg_set_dirty(&blocks, one, 0);
    pg_set_dirty(&blocks, one, 1);
    pg_unlist(&blocks, one);
    pg_become(&blocks, one, PG_STAGED);
    pg_become(&blocks, one, PG_WRITING);
    pg_become(&blocks, one, PG_STAGED);
    EXPECT(blocks.in_place == 1 && !blocks.dirty);
    pg_set_in_place(&blocks, one, 0);
    EXPECT(!blocks.in_place && blocks.dirty == 1);
    pg_become(&blocks, one, PG_ABSENT);
    EXPECT(!blocks.dirty && !blocks.count);
    end();
}

static pg_entry bring_in_place(void)
{
    pg_entry entry;

    pg_last_words = say;
    start(FRAMES);
    entry = bring(7, 0, 0);
    pg_set_in_place(&blocks, entry, 1);
    return entry;
}

/* Ends the process: the store would count for ever what is not there. */
static void test_lost_place(void)
{
    pg_become(&blocks, bring_in_place(), PG_ABSENT);
}

/* Ends the process: it would be chosen to leave with a frame that is none of the limit's. */
static void test_wrong_list(void)
{
    pg_keep(&policy, bring_in_place(), 0);
}

static const struct {
    const char *name;
    void (*test)(void);
} cases[] = {
    {"frames", test_frames},         {"jobs", test_jobs},
    {"streams", test_streams},       {"record", test_record},
    {"who_leaves", test_who_leaves}, {"what_stays", test_what_stays},
    {"missed", test_missed},         {"latency", test_latency},
    {"errnos", test_errnos},         {"lost_track", test_lost_track},
    {"in_place", test_in_place},     {"lost_place", test_lost_place},
    {"wrong_list", test_wrong_list},
};

int main(int count, char **arguments)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (count == 2 && !strcmp(arguments[1], cases[i].name)) {
            cases[i].test();
            return 0;
        }
    return 2;
}

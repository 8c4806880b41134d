/* Threads that read and write a region, check every word they see, and know what they wrote.
 *
 * A file begins with the pattern of support/pages.py. A writer owns some of the words, each of
 * which it counts up by one, and counts the same beside the region: `shadow`, one number a word.
 * Before it adds one it looks: the word must be what it last made it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"

enum { READ, COUNT, VERSION, DISCARD, ADVISE };
enum { RANDOM, SEQUENTIAL, STRIDED };

enum { LINE = 8, PAGE_WORDS = 512 };

struct work {
    /* How; as in paging.py. */
    int kind, order;
    uint64_t *words;
    uint64_t origin; /* number of the first of them */
    uint64_t count;  /* how many there are */
    uint64_t block;  /* words a block; what SEQUENTIAL and STRIDED step by is a part of it */
    uint64_t tag;    /* of the pattern */
    uint64_t number; /* its own lines, or pages, are those of index number modulo of */
    uint64_t of;
    uint32_t *shadow;
    uint64_t steps; /* to make; 0: until stopped */
    int fd;         /* a memfd of its own, for stores by the kernel; or -1 */
    int advice;     /* ADVISE */
    /* What came of it. */
    uint64_t done, wrong, first, seen, wanted, address;
    int signal, stop;
    pthread_t thread;
    uint64_t seed, at;
};

static uint64_t random_below(struct work *me, uint64_t limit)
{
    uint64_t *seed = &me->seed;

    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return ((*seed * UINT64_C(0x2545F4914F6CDD1D)) >> 33) % limit;
}

static uint64_t pattern(const struct work *me, uint64_t i)
{
    return ((me->origin + i + 1) * UINT64_C(0x9E3779B97F4A7C15)) ^ ((me->tag + 1) << 20);
}

static void note(struct work *me, uint64_t i, uint64_t seen, uint64_t wanted)
{
    if (!me->wrong++) {
        me->first = i;
        me->seen = seen;
        me->wanted = wanted;
    }
}

/* The next place, in units of `unit` words. */
static uint64_t place(struct work *me, uint64_t unit)
{
    uint64_t places = me->count / unit;

    switch (me->order) {
    case RANDOM:
        me->at = random_below(me, places);
        break;
    case SEQUENTIAL:
        me->at = (me->at + 1) % places;
        break;
    case STRIDED: /* one place a block, three blocks on */
        me->at = (me->at + 3 * (me->block > unit ? me->block / unit : 1) + 1) % places;
        break;
    }
    return me->at;
}

/* One's own page, that is, near a place. */
static uint64_t own_page(const struct work *me, uint64_t page)
{
    uint64_t own = page / me->of * me->of + me->number;

    return own < me->count / PAGE_WORDS ? own : me->number;
}

static void read_line(struct work *me)
{
    uint64_t i = place(me, LINE) * LINE;

    i = own_page(me, i / PAGE_WORDS) * PAGE_WORDS + i % PAGE_WORDS;

    for (uint64_t end = i + LINE; i < end; i++) {
        uint64_t seen = __atomic_load_n(&me->words[i], __ATOMIC_RELAXED);
        if (seen != pattern(me, i))
            note(me, i, seen, pattern(me, i));
    }
}

/* Stores one word in one of the ways in which programs store. */
static void store(struct work *me, uint64_t i, uint64_t value)
{
    uint64_t way = random_below(me, 32);

    if (!way && me->fd >= 0) {
        /* EFAULT would be a store that did not happen: the next look at the word tells. */
        if (pwrite(me->fd, &value, sizeof value, 0) == sizeof value &&
            pread(me->fd, &me->words[i], sizeof value, 0) == sizeof value)
            return;
    }
    if (way < 4)
        __atomic_fetch_add(&me->words[i], 1, __ATOMIC_SEQ_CST);
    else
        __atomic_store_n(&me->words[i], value, __ATOMIC_RELAXED);
}

static void count_up(struct work *me, uint64_t i)
{
    uint32_t before = __atomic_load_n(&me->shadow[i], __ATOMIC_RELAXED);
    uint64_t wanted = pattern(me, i) + before;
    uint64_t seen = __atomic_load_n(&me->words[i], __ATOMIC_RELAXED);

    if (seen != wanted) {
        note(me, i, seen, wanted);
        __atomic_store_n(&me->words[i], wanted + 1, __ATOMIC_RELAXED);
    } else {
        store(me, i, wanted + 1);
    }
    __atomic_store_n(&me->shadow[i], before + 1, __ATOMIC_RELEASE);
}

static void count_line(struct work *me)
{
    uint64_t line = place(me, LINE);
    uint64_t first = random_below(me, LINE), last = first + random_below(me, LINE - first);

    if (me->order != RANDOM && line % me->of != me->number)
        return;
    line = line / me->of * me->of + me->number;
    if (line >= me->count / LINE)
        return;
    for (uint64_t i = line * LINE + first; i <= line * LINE + last; i++)
        count_up(me, i);
}

/* A whole page, from its first word to its last, gets the next version. So at every moment it is
 * so many words of one version followed by words of the version before. */
static void next_version(struct work *me)
{
    uint64_t page = own_page(me, place(me, PAGE_WORDS)), first = page * PAGE_WORDS;
    uint32_t version;

    version = __atomic_load_n(&me->shadow[page], __ATOMIC_RELAXED);
    for (uint64_t i = first; i < first + PAGE_WORDS; i++) {
        uint64_t wanted = pattern(me, i) + version;
        uint64_t seen = __atomic_load_n(&me->words[i], __ATOMIC_RELAXED);
        if (seen != wanted)
            note(me, i, seen, wanted);
        __atomic_store_n(&me->words[i], wanted + 1, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&me->shadow[page], version + 1, __ATOMIC_RELEASE);
}

static void discard(struct work *me)
{
    uint64_t pages = me->of > 1 ? 1 : 1 + random_below(me, 3);
    uint64_t page = own_page(me, place(me, PAGE_WORDS));

    if (page + pages > me->count / PAGE_WORDS)
        pages = 1;
    madvise(&me->words[page * PAGE_WORDS], pages * PAGE_WORDS * sizeof(uint64_t), MADV_DONTNEED);
}

static void step(struct work *me)
{
    switch (me->kind) {
    case READ:
        read_line(me);
        break;
    case COUNT:
        count_line(me);
        break;
    case VERSION:
        next_version(me);
        break;
    case DISCARD:
        discard(me);
        break;
    case ADVISE:
        madvise(me->words, me->count * sizeof(uint64_t), me->advice);
        break;
    }
}

static void *run(void *argument)
{
    struct work *me = argument;
    struct guard guard;

    me->signal = sigsetjmp(guard.jump, 1);
    if (me->signal) {
        me->address = guard.address;
        guard_armed = NULL;
        return NULL;
    }
    guard_armed = &guard;
    while (!__atomic_load_n(&me->stop, __ATOMIC_ACQUIRE) && !(me->steps && me->done >= me->steps)) {
        step(me);
        __atomic_fetch_add(&me->done, 1, __ATOMIC_RELAXED);
    }
    guard_armed = NULL;
    return NULL;
}

int work_start(struct work *me)
{
    me->seed = UINT64_C(0x9E3779B97F4A7C15) ^ (me->seed << 17) ^ (me->number << 40);
    me->at = me->order == RANDOM ? 0 : me->number;
    return pthread_create(&me->thread, NULL, run, me);
}

void work_stop(struct work *me)
{
    __atomic_store_n(&me->stop, 1, __ATOMIC_RELEASE);
}

/* 0 when it has ended; ETIMEDOUT when it is still stuck after so many seconds. */
int work_join(struct work *me, double seconds)
{
    struct timespec limit;

    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += (time_t)seconds + 1;
    return pthread_timedjoin_np(me->thread, NULL, &limit);
}

/* Words that are not the pattern plus the shadow (which may be NULL); `where`: the first of them.
 */
uint64_t words_wrong(const uint64_t *words, uint64_t first, uint64_t count, uint64_t tag,
                     const uint32_t *shadow, uint64_t *where)
{
    struct work me = {.tag = tag};

    for (uint64_t i = 0; i < count; i++) {
        uint64_t wanted = pattern(&me, first + i) + (shadow ? shadow[first + i] : 0);
        if (words[i] != wanted)
            note(&me, first + i, words[i], wanted);
    }
    where[0] = me.first;
    where[1] = me.seen;
    where[2] = me.wanted;
    return me.wrong;
}

/* Words whose count is not between what was counted before (`low`) and one more than what has been
 * counted by now (`high`, still counting). There is one counter for each `per` words. `whole`: each
 * of these pieces must be as it was at one moment, words of one version followed by words of the
 * version before. */
uint64_t words_outside(const uint64_t *words, uint64_t count, uint64_t tag, const uint32_t *low,
                       const uint32_t *high, uint64_t per, int whole, uint64_t *where)
{
    struct work me = {.tag = tag};
    uint64_t before = 0;

    for (uint64_t i = 0; i < count; i++) {
        uint64_t seen = __atomic_load_n(&words[i], __ATOMIC_ACQUIRE) - pattern(&me, i);
        uint64_t most = (uint64_t)__atomic_load_n(&high[i / per], __ATOMIC_ACQUIRE) + 1;
        if (seen < low[i / per] || seen > most)
            note(&me, i, seen, low[i / per]);
        else if (whole && i % per && (seen > before || before - seen > 1))
            note(&me, i, seen, before);
        before = seen;
    }
    where[0] = me.first;
    where[1] = me.seen;
    where[2] = me.wanted;
    return me.wrong;
}

#define _GNU_SOURCE
#include "pager/mechanisms/clock.h"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLICE UINT64_C(100000000)
/* A thread that is ready may have to wait for a CPU; this much longer, and it was stopped. */
#define GAP (SLICE + UINT64_C(150000000))
/* Ticks closer to each other than this are one: threads would share its cache line for nothing. */
#define FRESH UINT64_C(10000000)

/* Descriptors of a set, and of a word of it. */
enum { MOST_SELECTED = 1 << 16, BITS = 8 * sizeof(unsigned long) };

static pthread_mutex_t gap_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t last_tick, stopped;
static unsigned waiting; /* threads that tick */

static uint64_t running_clock(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Several threads may notice the same gap: the first one counts it. */
static void count_gap(uint64_t at)
{
    uint64_t last;

    pthread_mutex_lock(&gap_lock);
    last = __atomic_load_n(&last_tick, __ATOMIC_RELAXED);
    if (at > last + GAP) {
        __atomic_add_fetch(&stopped, at - last - SLICE, __ATOMIC_RELEASE);
        /* After that: who finds no gap any more must find it counted. */
        __atomic_store_n(&last_tick, at, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&gap_lock);
}

static void tick(uint64_t at)
{
    uint64_t last = __atomic_load_n(&last_tick, __ATOMIC_ACQUIRE);

    if (__atomic_load_n(&waiting, __ATOMIC_ACQUIRE) && at > last + GAP)
        count_gap(at);
    else if (at > last + FRESH)
        __atomic_compare_exchange_n(&last_tick, &last, at, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

uint64_t pg_now(void)
{
    uint64_t before, after, at;

    /* A time read before a gap was counted does not go with a sum that has it. */
    do {
        before = __atomic_load_n(&stopped, __ATOMIC_ACQUIRE);
        at = running_clock();
        tick(at);
        after = __atomic_load_n(&stopped, __ATOMIC_ACQUIRE);
    } while (before != after);
    return at - after;
}

uint64_t pg_begin_ticking(void)
{
    uint64_t now = pg_now();

    __atomic_add_fetch(&waiting, 1, __ATOMIC_ACQ_REL);
    return now;
}

void pg_end_ticking(void)
{
    pg_now();
    __atomic_sub_fetch(&waiting, 1, __ATOMIC_ACQ_REL);
}

static struct timespec timespec_of(uint64_t nanoseconds)
{
    return (struct timespec){(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
}

void pg_wait_until(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t when)
{
    uint64_t now = pg_begin_ticking(), left = when > now ? when - now : 0;
    struct timespec at = timespec_of(running_clock() + (left < SLICE ? left : SLICE));

    pthread_cond_timedwait(condition, lock, &at);
    pg_end_ticking();
}

void pg_sleep_until(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t when)
{
    uint64_t now = pg_now();
    struct timespec at = timespec_of(running_clock() + (when > now ? when - now : 0));

    pthread_cond_timedwait(condition, lock, &at);
}

static int is_in(const unsigned long *set, int fd)
{
    return (int)(set[fd / BITS] >> fd % BITS & 1);
}

/* As ppoll(2), which refuses more descriptors than RLIMIT_NOFILE is, and that may have become less
 * than the pager has: select(2) does not look at it. */
static int select_instead(struct pollfd *polled, nfds_t count, struct timespec most)
{
    unsigned long sets[2][MOST_SELECTED / BITS] = {{0}};
    int end = 0, ready;

    for (nfds_t i = 0; i < count; i++) {
        int fd = polled[i].fd;

        polled[i].revents = 0;
        if (fd < 0 || fd >= MOST_SELECTED)
            continue;
        if (polled[i].events & POLLIN)
            sets[0][fd / BITS] |= 1UL << fd % BITS;
        if (polled[i].events & POLLOUT)
            sets[1][fd / BITS] |= 1UL << fd % BITS;
        end = fd >= end ? fd + 1 : end;
    }
    ready = (int)syscall(SYS_pselect6, end, sets[0], sets[1], NULL, &most, NULL);
    for (nfds_t i = 0; ready > 0 && i < count; i++) {
        int fd = polled[i].fd;

        if (fd < 0 || fd >= MOST_SELECTED)
            continue;
        polled[i].revents |= is_in(sets[0], fd) ? POLLIN : 0;
        polled[i].revents |= is_in(sets[1], fd) ? POLLOUT : 0;
    }
    return ready;
}

static int poll_for(struct pollfd *polled, nfds_t count, struct timespec most)
{
    int ready = ppoll(polled, count, &most, NULL);

    return ready < 0 && errno == EINVAL ? select_instead(polled, count, most) : ready;
}

int pg_poll_until(struct pollfd *polled, nfds_t count, uint64_t when)
{
    uint64_t now;
    int ready = 0;

    if (when == UINT64_MAX) {
        ready = poll(polled, count, -1);
        return ready < 0 && errno == EINVAL
                   ? select_instead(polled, count, timespec_of(UINT64_C(3600000000000)))
                   : ready;
    }
    now = pg_begin_ticking();
    for (;;) {
        uint64_t left = when > now ? when - now : 0;

        ready = poll_for(polled, count, timespec_of(left < SLICE ? left : SLICE));
        now = pg_now();
        if (ready || now >= when)
            break;
    }
    pg_end_ticking();
    return ready;
}

void pg_sleep(uint64_t nanoseconds)
{
    uint64_t now = pg_begin_ticking(), until = now + nanoseconds;

    for (; now < until; now = pg_now()) {
        struct timespec pause = timespec_of(until - now < SLICE ? until - now : SLICE);
        nanosleep(&pause, NULL);
    }
    pg_end_ticking();
}

void pg_clock_forked(void)
{
    pthread_mutex_init(&gap_lock, NULL);
    waiting = 0;
}

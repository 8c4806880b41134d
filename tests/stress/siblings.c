/* Threads that get in the way of a move, in C: they need no GIL, and no page of the interpreter.
 *
 * Built by siblings.py and loaded with ctypes. Each kind makes one step again and again; what a
 * step counts is what `sibling_stop` gives.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

enum { COLD, PAGEOUT, DISCARD, READ, COUNT, FORK };

struct sibling {
    int kind, cpu;
    char *start; /* of the pages; COUNT: of a table of addresses of pages */
    size_t pages, page_size;
    uint64_t number; /* COUNT: which word of each page; else the seed */
    pthread_t thread;
    int stop;
    uint64_t pause, steps, found;
};

static uint64_t random_below(uint64_t *seed, uint64_t limit)
{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return ((*seed * UINT64_C(0x2545F4914F6CDD1D)) >> 33) % limit;
}

/* Words of a page that are neither zero nor what the first of them says. */
static uint64_t mixed(const volatile uint64_t *page, size_t words)
{
    uint64_t token = 0, wrong = 0;

    for (size_t i = 0; i < words; i++) {
        uint64_t word = page[i];
        if (word && !token)
            token = word;
        wrong += word && word != token;
    }
    return wrong;
}

static void fork_once(void)
{
    pid_t child = fork();

    if (!child)
        _exit(0);
    if (child > 0)
        waitpid(child, NULL, 0);
}

/* MADV_COLD changes an entry once, and must come between two looks at it: too often is too early,
 * for then it has changed before. Others leave the movers some time. */
static void pause_a_little(uint64_t *seed, uint64_t most)
{
    for (volatile uint64_t left = random_below(seed, most + 1); left; left--)
        ;
}

static void step(struct sibling *me, uint64_t *seed)
{
    char *page = me->start + random_below(seed, me->pages) * me->page_size;

    switch (me->kind) {
    case COLD:
        madvise(me->start, me->pages * me->page_size, MADV_COLD);
        break;
    case PAGEOUT:
        madvise(me->start, me->pages * me->page_size, MADV_PAGEOUT);
        break;
    case DISCARD:
        madvise(page, me->page_size, MADV_DONTNEED);
        break;
    case READ:
        me->found += mixed((const volatile uint64_t *)page, me->page_size / sizeof(uint64_t));
        break;
    case COUNT: {
        /* The page may leave between the two lines: then this counts in the page that comes. */
        uint64_t *const *table = (uint64_t *const *)me->start;
        uint64_t *counters =
            __atomic_load_n(&table[random_below(seed, me->pages)], __ATOMIC_ACQUIRE);
        __atomic_fetch_add(&counters[me->number], 1, __ATOMIC_SEQ_CST);
        me->found++;
        break;
    }
    case FORK:
        fork_once();
        break;
    }
}

static void *run(void *argument)
{
    struct sibling *me = argument;
    uint64_t seed = 0x9E3779B97F4A7C15 ^ (me->number << 8);
    cpu_set_t cpus;

    if (me->cpu >= 0) {
        CPU_ZERO(&cpus);
        CPU_SET(me->cpu, &cpus);
        sched_setaffinity(0, sizeof cpus, &cpus);
    }
    while (!__atomic_load_n(&me->stop, __ATOMIC_ACQUIRE)) {
        step(me, &seed);
        pause_a_little(&seed, __atomic_load_n(&me->pause, __ATOMIC_RELAXED));
        __atomic_fetch_add(&me->steps, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

void *sibling_start(int kind, void *start, size_t pages, uint64_t number, int cpu)
{
    struct sibling *me = calloc(1, sizeof *me);

    if (!me)
        return NULL;
    *me = (struct sibling){.kind = kind,
                           .cpu = cpu,
                           .start = start,
                           .pages = pages,
                           .page_size = (size_t)sysconf(_SC_PAGESIZE),
                           .number = number};
    if (pthread_create(&me->thread, NULL, run, me)) {
        free(me);
        return NULL;
    }
    return me;
}

/* Let it wait between steps, for a random time up to `most` turns of a loop. */
void sibling_pause(struct sibling *me, uint64_t most)
{
    __atomic_store_n(&me->pause, most, __ATOMIC_RELAXED);
}

uint64_t sibling_steps(const struct sibling *me)
{
    return __atomic_load_n(&me->steps, __ATOMIC_RELAXED);
}

uint64_t sibling_stop(struct sibling *me)
{
    uint64_t found;

    __atomic_store_n(&me->stop, 1, __ATOMIC_RELEASE);
    pthread_join(me->thread, NULL);
    found = me->found;
    free(me);
    return found;
}

struct uffdio_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};

static int raw_move(int fd, char *dst, char *src, size_t length, uint64_t mode)
{
    struct uffdio_move arg = {(uint64_t)(uintptr_t)dst, (uint64_t)(uintptr_t)src, length, mode, 0};

    return ioctl(fd, _IOWR(0xAA, 0x05, struct uffdio_move), &arg);
}

/* One page to and fro between two by the bare call: how often the kernel said EEXIST of a page
 * that it had moved. */
uint64_t raw_lies(int fd, char *pages, uint64_t calls)
{
    size_t page_size = (size_t)sysconf(_SC_PAGESIZE);
    char *src = pages, *dst = pages + page_size;
    uint64_t lies = 0;

    for (uint64_t i = 0; i < calls; i++) {
        unsigned char there = 0;
        char *moved = dst;
        if (raw_move(fd, dst, src, page_size, 0)) {
            if (errno != EEXIST || mincore(dst, page_size, &there) || !(there & 1))
                continue;
            lies++;
        }
        dst = src;
        src = moved;
    }
    return lies;
}

/* Moves with the kernel's own flag for holes, counting them where another process can see it: the
 * count stands still when the kernel does not come back. */
void raw_holes(int fd, char *dst, char *src, uint64_t calls, volatile uint64_t *done)
{
    size_t page_size = (size_t)sysconf(_SC_PAGESIZE);

    for (uint64_t i = 0; i < calls; i++) {
        *(volatile char *)src = 1;
        raw_move(fd, dst, src, page_size, 2);
        madvise(dst, page_size, MADV_DONTNEED);
        ++*done;
    }
}

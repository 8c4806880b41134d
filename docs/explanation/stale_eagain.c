/* The stale EAGAIN of UFFDIO_MOVE, shown without any library: the kernel moves pages and denies it.
 *
 *     cc -O2 -pthread -o stale_eagain stale_eagain.c
 *     ./stale_eagain page [SECONDS]     one page to and fro
 *     ./stale_eagain run [SECONDS]      sixteen pages in one call
 *     ./stale_eagain holes [SECONDS]    with UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: the call that stays
 *
 * Needs Linux 6.8 and no privileges. What is printed is counted from the pages' contents. The exit
 * status is 0 whether or not the kernel has the defect, 1 if a page was lost, 2 if it cannot run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#endif

/* As in linux/userfaultfd.h, which on many systems is older than UFFDIO_MOVE. */
struct move {
    uint64_t dst, src, len, mode;
    int64_t moved;
};
#define MOVE _IOWR(0xAA, 0x05, struct move)
enum { ALLOW_SRC_HOLES = 2, RUN = 16 };

static int uffd;
static size_t page_size;
static char *memory; /* two places of RUN pages, one after the other */
static size_t pages; /* of each that are used */
static atomic_int stop;
static atomic_ulong pause_turns;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void give_up(const char *what)
{
    perror(what);
    exit(2);
}

static uint64_t *word_of(int place, size_t page)
{
    return (uint64_t *)(memory + ((size_t)place * RUN + page) * page_size);
}

/* What the first word of a page is, wherever the page is. In a run the middle one is the kernel's
 * page of zeros: that moves by itself, so a run takes three steps, and can be hit behind the first.
 */
static uint64_t contents(size_t page)
{
    return pages > 1 && page == RUN / 2 ? 0 : page + 1;
}

/* Without touching it, which would give a hole a page of zeros. */
static int is_there(int place, size_t page)
{
    unsigned char there = 0;

    if (mincore(word_of(place, page), page_size, &there))
        give_up("mincore");
    return there & 1;
}

/* The first CPU for the mover, the last for the sibling, as far as there are two. */
static void stay_on(int last)
{
    cpu_set_t all, one;
    int cpu = last ? CPU_SETSIZE - 1 : 0;

    sched_getaffinity(0, sizeof all, &all);
    while (!CPU_ISSET(cpu, &all))
        cpu += last ? -1 : 1;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

/* MADV_COLD clears the "accessed" bit in the page-table entries of both places: the contents stay,
 * and the entry is another one. It does so once for every move, because a moved page counts as
 * accessed; so it has to come at the right moment, and the pause decides when. */
static void *make_cold(void *cpus)
{
    unsigned random = 1;

    sched_setaffinity(0, sizeof(cpu_set_t), cpus);
    stay_on(1);
    while (!atomic_load(&stop)) {
        unsigned long most = atomic_load(&pause_turns);
        madvise(memory, 2 * RUN * page_size, MADV_COLD);
        random = random * 1103515245 + 12345;
        for (volatile unsigned long left = (random >> 8) % (most + 1); left; left--)
            ;
    }
    return NULL;
}

static void *discard(void *cpus)
{
    sched_setaffinity(0, sizeof(cpu_set_t), cpus);
    stay_on(1);
    while (!atomic_load(&stop))
        madvise(memory, page_size, MADV_DONTNEED);
    return NULL;
}

struct tally {
    unsigned long calls, denied, left_out;
};

/* Move all pages from one place to the other, and compare what the kernel says with what is. */
static int move_and_compare(int from, struct tally *tally)
{
    struct move arg = {(uintptr_t)word_of(!from, 0), (uintptr_t)word_of(from, 0), pages * page_size,
                       0, 0};
    int failed = ioctl(uffd, MOVE, &arg), error = failed ? errno : 0;
    size_t said = failed && arg.moved <= 0 ? 0 : (size_t)(failed ? arg.moved : (int64_t)arg.len);
    size_t done = 0;

    tally->calls++;
    while (done < pages && !is_there(from, done) && is_there(!from, done))
        done++;
    for (size_t i = 0; i < pages; i++)
        if (*word_of(i < done ? !from : from, i) != contents(i)) {
            printf("page %zu is lost\n", i);
            exit(1);
        }
    said /= page_size;
    tally->denied += !said && done && error == EEXIST;
    tally->left_out += said && done > said;
    /* Whatever was said, go on from what is: the rest, if any, follows. */
    if (done < pages) {
        arg = (struct move){(uintptr_t)word_of(!from, done), (uintptr_t)word_of(from, done),
                            (pages - done) * page_size, 0, 0};
        while (!is_there(!from, pages - 1) && ioctl(uffd, MOVE, &arg) && errno == EAGAIN)
            ;
    }
    return !from;
}

static void provoke(double limit, const cpu_set_t *cpus)
{
    static const unsigned long pauses[] = {0, 300, 3000, 30000, 100000, 300000};
    size_t count = sizeof pauses / sizeof *pauses;
    struct tally all = {0};
    pthread_t sibling;
    int place = 0;

    for (size_t i = 0; i < pages; i++)
        if (contents(i))
            *word_of(place, i) = contents(i);
        else
            (void)*(volatile uint64_t *)word_of(place, i);
    pthread_create(&sibling, NULL, make_cold, (void *)cpus);
    puts("pause  calls     us/call  denied (EEXIST)  left out of a short count");
    for (size_t p = 0; p < count; p++) {
        struct tally tally = {0};
        double begin = now(), end = begin + limit / (double)count;
        atomic_store(&pause_turns, pauses[p]);
        do
            place = move_and_compare(place, &tally);
        while (now() < end);
        printf("%-6lu %-9lu %-8.1f %-16lu %lu\n", pauses[p], tally.calls,
               1e6 * (now() - begin) / (double)tally.calls, tally.denied, tally.left_out);
        all.calls += tally.calls;
        all.denied += tally.denied;
        all.left_out += tally.left_out;
    }
    atomic_store(&stop, 1);
    pthread_join(sibling, NULL);
    printf("wrong answers: %lu of %lu calls; no page was lost\n", all.denied + all.left_out,
           all.calls);
}

/* In a child, which is killed when it makes no progress: there is no other way to end it. */
static void watch(double limit, const cpu_set_t *cpus)
{
    atomic_ulong *calls =
        mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double end = now() + limit, still = now();
    unsigned long before = 0;
    pid_t child = fork();

    if (calls == MAP_FAILED || child < 0)
        give_up("fork");
    if (!child) {
        /* What is open belongs to the parent's memory. */
        pthread_t sibling;
        uint64_t api[3] = {0xAA, 1 << 16, 0},
                 wp[4] = {(uintptr_t)memory, 2 * RUN * page_size, 2, 0};
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
        if (uffd < 0 || ioctl(uffd, _IOWR(0xAA, 0x3F, uint64_t[3]), api) ||
            ioctl(uffd, _IOWR(0xAA, 0x00, uint64_t[4]), wp))
            _exit(2);
        pthread_create(&sibling, NULL, discard, (void *)cpus);
        for (;; atomic_fetch_add(calls, 1)) {
            struct move arg = {(uintptr_t)word_of(1, 0), (uintptr_t)word_of(0, 0), page_size,
                               ALLOW_SRC_HOLES, 0};
            *(volatile uint64_t *)word_of(0, 0) = 1;
            ioctl(uffd, MOVE, &arg);
            madvise(word_of(1, 0), page_size, MADV_DONTNEED);
        }
    }
    while (now() < end && now() < still + 1.5) {
        unsigned long count = atomic_load(calls);
        if (count != before)
            still = now();
        before = count;
        usleep(10000);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (now() >= still + 1.5)
        printf("after %lu calls one did not come back: killed\n", before);
    else
        printf("%lu calls, and every one came back\n", before);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "page";
    double limit = argc > 2 ? atof(argv[2]) : 6;
    uint64_t api[3] = {0xAA, 1 << 16 /* UFFD_FEATURE_MOVE */, 0}, wp[4];
    cpu_set_t cpus;

    page_size = (size_t)sysconf(_SC_PAGESIZE);
    pages = strcmp(mode, "run") ? 1 : RUN;
    memory =
        mmap(NULL, 2 * RUN * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || madvise(memory, 2 * RUN * page_size, MADV_NOHUGEPAGE))
        give_up("mmap");
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
    if (uffd < 0 || ioctl(uffd, _IOWR(0xAA, 0x3F, uint64_t[3]), api))
        give_up("userfaultfd, UFFDIO_API with UFFD_FEATURE_MOVE");
    /* For write protection only: then a first touch still gets a page of zeros, and nobody waits.
     */
    wp[0] = (uintptr_t)memory;
    wp[1] = 2 * RUN * page_size;
    wp[2] = 2; /* UFFDIO_REGISTER_MODE_WP */
    wp[3] = 0;
    if (ioctl(uffd, _IOWR(0xAA, 0x00, uint64_t[4]), wp))
        give_up("UFFDIO_REGISTER");
    sched_getaffinity(0, sizeof cpus, &cpus);
    setvbuf(stdout, NULL, _IOLBF, 0);
    stay_on(0);
    if (strcmp(mode, "holes"))
        provoke(limit, &cpus);
    else
        watch(limit, &cpus);
    return 0;
}

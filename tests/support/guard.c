/* Touching memory that may be poisoned or gone, and watching how much of the process is resident.
 *
 * Built together with workers.c by paging.py.
 */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

__thread struct guard *guard_armed;

static struct sigaction sigbus_before, sigsegv_before;

static void caught(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (guard_armed) {
        guard_armed->address = (uintptr_t)info->si_addr;
        guard_armed->code = info->si_code;
        siglongjmp(guard_armed->jump, number);
    }
    /* Not ours: whoever was there before gets it. A fault happens again by itself when this
     * returns; what somebody sent has to be sent again. */
    sigaction(number, number == SIGBUS ? &sigbus_before : &sigsegv_before, NULL);
    if (info->si_code <= 0)
        raise(number);
}

/* Once a process, but a forked child may have installed handlers of its own since. */
int guard_install(void)
{
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO}, now;

    if (!sigaction(SIGBUS, NULL, &now) && now.sa_sigaction == caught)
        return 0;
    return sigaction(SIGBUS, &action, &sigbus_before) ||
           sigaction(SIGSEGV, &action, &sigsegv_before);
}

/* Copies, and gives the signal that stopped it, or 0. */
int guarded_copy(void *to, const void *from, size_t length, uint64_t *where)
{
    struct guard guard;
    int number = sigsetjmp(guard.jump, 1);

    if (!number) {
        guard_armed = &guard;
        memcpy(to, from, length);
    } else {
        where[0] = guard.address;
        where[1] = (uint64_t)(int64_t)guard.code;
    }
    guard_armed = NULL;
    return number;
}

/* One instruction that needs up to four blocks at once: both words lie across a border. */
void move_word(uint64_t *to, const uint64_t *from)
{
#ifdef __x86_64__
    __asm__ volatile("movsq" : "+D"(to), "+S"(from) : : "memory");
#else
    memcpy(to, from, sizeof *to);
#endif
}

struct sampler {
    pthread_t thread;
    int fd, stop, page_size;
    uint64_t first, peak, samples;
};

/* Anonymous pages of the process: resident less file and shared memory (proc(5), statm). It is what
 * smaps adds up over all anonymous mappings, but taken at one moment: a block that moves while a
 * walk over the mappings is under way would be counted twice there, or not at all. */
static uint64_t anonymous_pages(int fd)
{
    char text[128];
    ssize_t length = pread(fd, text, sizeof text - 1, 0);
    uint64_t size, resident, shared;

    if (length <= 0)
        return 0;
    text[length] = 0;
    if (sscanf(text, "%lu %lu %lu", &size, &resident, &shared) != 3)
        return 0;
    return resident - shared;
}

static void *sample(void *argument)
{
    struct sampler *me = argument;
    const struct timespec pause = {.tv_nsec = 20000};

    while (!__atomic_load_n(&me->stop, __ATOMIC_ACQUIRE)) {
        uint64_t now = anonymous_pages(me->fd);
        if (now > __atomic_load_n(&me->peak, __ATOMIC_RELAXED))
            __atomic_store_n(&me->peak, now, __ATOMIC_RELAXED);
        __atomic_fetch_add(&me->samples, 1, __ATOMIC_RELAXED);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

void *sampler_start(void)
{
    struct sampler *me = calloc(1, sizeof *me);

    if (!me)
        return NULL;
    me->page_size = (int)sysconf(_SC_PAGESIZE);
    me->fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    me->peak = me->first = anonymous_pages(me->fd);
    if (me->fd < 0 || pthread_create(&me->thread, NULL, sample, me)) {
        free(me);
        return NULL;
    }
    return me;
}

/* Bytes by which it has grown at most since the start, or since the last reset. */
uint64_t sampler_peak(const struct sampler *me)
{
    return (__atomic_load_n(&me->peak, __ATOMIC_RELAXED) - me->first) * (uint64_t)me->page_size;
}

uint64_t sampler_samples(const struct sampler *me)
{
    return __atomic_load_n(&me->samples, __ATOMIC_RELAXED);
}

void sampler_stop(struct sampler *me)
{
    __atomic_store_n(&me->stop, 1, __ATOMIC_RELEASE);
    pthread_join(me->thread, NULL);
    close(me->fd);
    free(me);
}

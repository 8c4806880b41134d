#define _GNU_SOURCE
#include "pager/mechanisms/trace.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pager/mechanisms/threads.h"

enum { EVENTS = 1 << 17, THREADS = 1024, REGIONS = 1024, NAME = 16 };

struct event {
    uint64_t sequence; /* its number + 1, once all else is there */
    uint64_t began, ended;
    uint64_t region, offset, bytes;
    uint32_t process, thread;
    int32_t error;
    uint16_t kind, unused;
};

struct thread_name {
    uint32_t process, thread;
    char name[NAME];
};

struct region_name {
    uint64_t base, length;
    uint32_t process, block_size;
    char label[PG_TRACE_LABEL];
};

struct pg_trace {
    char magic[8];
    uint32_t events, threads, regions, process;
    uint64_t monotonic, realtime; /* the same moment */
    uint64_t next_event, next_thread, next_region;
    char unused[64];
    struct thread_name thread[THREADS];
    struct region_name region[REGIONS];
    struct event event[EVENTS];
};

_Static_assert(sizeof(struct event) == 64, "pagemove/paging/trace.py");
_Static_assert(sizeof(struct region_name) == 120, "pagemove/paging/trace.py");
_Static_assert(offsetof(struct pg_trace, thread) == 128, "pagemove/paging/trace.py");

struct pg_trace *pg_trace;

/* Of the thread that runs; a fork makes it another one. */
static uint32_t process, forks;
static PG_THREAD_LOCAL uint32_t thread, thread_forks;

static uint64_t clock_of(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t pg_trace_clock(void)
{
    return clock_of(CLOCK_MONOTONIC);
}

uint64_t pg_trace_bytes(void)
{
    return sizeof(struct pg_trace);
}

int pg_trace_start(int fd)
{
    struct pg_trace *trace =
        mmap(NULL, sizeof *trace, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);

    if (trace == MAP_FAILED)
        return -errno;
    process = (uint32_t)getpid();
    trace->events = EVENTS;
    trace->threads = THREADS;
    trace->regions = REGIONS;
    trace->process = process;
    trace->realtime = clock_of(CLOCK_REALTIME);
    trace->monotonic = clock_of(CLOCK_MONOTONIC);
    memcpy(trace->magic, "pmtrace1", sizeof trace->magic);
    __atomic_store_n(&pg_trace, trace, __ATOMIC_RELEASE);
    return 0;
}

void pg_trace_forked(void)
{
    process = (uint32_t)getpid();
    forks++;
}

/* Name the thread in the file, once. */
static void enter_thread(struct pg_trace *trace)
{
    uint64_t number;

    if (thread && thread_forks == forks)
        return;
    thread = (uint32_t)syscall(SYS_gettid);
    thread_forks = forks;
    number = __atomic_fetch_add(&trace->next_thread, 1, __ATOMIC_RELAXED);
    if (number >= THREADS)
        return;
    trace->thread[number].process = process;
    trace->thread[number].thread = thread;
    prctl(PR_GET_NAME, trace->thread[number].name);
}

void pg_trace_region(uint64_t base, uint64_t length, uint64_t block_size, const char *label)
{
    struct pg_trace *trace = __atomic_load_n(&pg_trace, __ATOMIC_ACQUIRE);
    uint64_t number;

    if (!trace)
        return;
    number = __atomic_fetch_add(&trace->next_region, 1, __ATOMIC_RELAXED);
    if (number >= REGIONS)
        return;
    trace->region[number].base = base;
    trace->region[number].length = length;
    trace->region[number].process = process;
    trace->region[number].block_size = (uint32_t)block_size;
    strncpy(trace->region[number].label, label, PG_TRACE_LABEL - 1);
}

void pg_trace_put(uint64_t region, int kind, uint64_t offset, uint64_t bytes, uint64_t began,
                  int error)
{
    struct pg_trace *trace = __atomic_load_n(&pg_trace, __ATOMIC_ACQUIRE);
    uint64_t number = __atomic_fetch_add(&trace->next_event, 1, __ATOMIC_RELAXED);
    struct event *event = &trace->event[number % EVENTS];

    enter_thread(trace);
    /* An exchange, so that what follows comes after it. */
    __atomic_exchange_n(&event->sequence, 0, __ATOMIC_ACQUIRE);
    event->began = began;
    event->ended = clock_of(CLOCK_MONOTONIC);
    event->region = region;
    event->offset = offset;
    event->bytes = bytes;
    event->process = process;
    event->thread = thread;
    event->error = error < 0 ? error : -error;
    event->kind = (uint16_t)kind;
    __atomic_store_n(&event->sequence, number + 1, __ATOMIC_RELEASE);
}

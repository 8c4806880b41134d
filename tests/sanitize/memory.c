#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"
#include "uapi.h"

void fail(const char *file, int line, const char *condition, const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "%s:%d: failed: %s", file, line, condition);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

struct pm_process *library(void)
{
    struct pm_process *process;
    int error = pm_process_get(&process);

    CHECK(!error, "pm_process_get: %s", strerror(-error));
    return process;
}

void set_guard(int on)
{
    CHECK(!pm_process_set_defects(on ? PM_DEFECT_STALE_EAGAIN : 0));
}

void with_guard_and_without(void (*run)(uint64_t seed), uint64_t seed)
{
    for (int guard = 0; guard < 2; guard++) {
        set_guard(guard);
        run(seed);
    }
}

uint64_t random_below(uint64_t *seed, uint64_t limit)
{
    /* xorshift64*, by S. Vigna */
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return ((*seed * UINT64_C(0x2545F4914F6CDD1D)) >> 33) % limit;
}

void page_register(char *start, size_t length)
{
    struct pm_uffdio_register arg = {
        .range = {.start = (uintptr_t)start, .len = length},
        .mode = PM_REGISTER_MODE_WP,
    };

    CHECK(!ioctl(library()->uffd, PM_UFFDIO_REGISTER, &arg), "%s", strerror(errno));
}

int page_there(const char *page)
{
    /* Its own, so that it sees what is there whatever became of the library's descriptor. */
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t word;
    off_t at = (off_t)((uintptr_t)page / library()->page_size * sizeof word);

    CHECK(pagemap >= 0 && pread(pagemap, &word, sizeof word, at) == sizeof word);
    close(pagemap);
    return word >> 62 != 0;
}

struct area area_make(size_t pages, int huge)
{
    size_t page = library()->page_size, align = huge ? library()->huge_page_size : page;
    size_t length = pages * page;
    char *found =
        mmap(NULL, length + align + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct area area = {.pages = pages, .tokens = calloc(pages, sizeof *area.tokens)};

    CHECK(found != MAP_FAILED && area.tokens);
    /* Between two pages that nobody can touch, so that the kernel merges it with no neighbour. */
    area.start = (char *)(((uintptr_t)found + page + align - 1) / align * align);
    CHECK(!mprotect(area.start, length, PROT_READ | PROT_WRITE));
    if ((size_t)(area.start - found) > page)
        CHECK(!munmap(found, (size_t)(area.start - found) - page));
    CHECK(!munmap(area.start + length + page, (size_t)(found + align + page - area.start)));
    madvise(area.start, length, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    CHECK(!madvise(area.start, length, MADV_DONTFORK));
    page_register(area.start, length);
    return area;
}

void area_free(struct area *area)
{
    size_t page = library()->page_size;

    CHECK(!munmap(area->start - page, (area->pages + 2) * page));
    free(area->tokens);
}

uint64_t area_at(const struct area *area, size_t page)
{
    return (uintptr_t)area->start + page * library()->page_size;
}

/* Words that no other token, and no other place in a page, has. */
static uint64_t word_of(uint64_t token, size_t i)
{
    return (token << 16) + i + 1;
}

void area_fill(struct area *area, size_t page, uint64_t token)
{
    uint64_t *words = (uint64_t *)(uintptr_t)area_at(area, page);

    for (size_t i = 0; i < library()->page_size / sizeof *words; i++)
        words[i] = word_of(token, i);
    area->tokens[page] = token;
}

void area_discard(struct area *area, size_t page, size_t pages)
{
    CHECK(!madvise((void *)(uintptr_t)area_at(area, page), pages * library()->page_size,
                   MADV_DONTNEED));
    memset(area->tokens + page, 0, pages * sizeof *area->tokens);
}

uint64_t area_look(const struct area *area, size_t page)
{
    const uint64_t *words = (const uint64_t *)(uintptr_t)area_at(area, page);
    uint64_t token;

    if (!page_there((const char *)words))
        return 0;
    token = words[0] >> 16;
    for (size_t i = 0; i < library()->page_size / sizeof *words; i++)
        CHECK(words[i] == word_of(token, i), "page %zu word %zu: %#jx", page, i,
              (uintmax_t)words[i]);
    return token;
}

void area_check(const struct area *area)
{
    for (size_t i = 0; i < area->pages; i++) {
        uint64_t token = area_look(area, i);
        CHECK(token == area->tokens[i], "page %zu has %#jx, not %#jx", i, (uintmax_t)token,
              (uintmax_t)area->tokens[i]);
    }
}

static void *sibling_run(void *argument)
{
    struct sibling *sibling = argument;

    while (!atomic_load(&sibling->stop)) {
        sibling->step(sibling->argument);
        atomic_fetch_add(&sibling->rounds, 1);
    }
    return NULL;
}

void sibling_start(struct sibling *sibling, void (*step)(void *), void *argument)
{
    sibling->step = step;
    sibling->argument = argument;
    atomic_init(&sibling->stop, 0);
    atomic_init(&sibling->rounds, 0);
    CHECK(!pthread_create(&sibling->thread, NULL, sibling_run, sibling));
}

long sibling_stop(struct sibling *sibling)
{
    atomic_store(&sibling->stop, 1);
    CHECK(!pthread_join(sibling->thread, NULL));
    return atomic_load(&sibling->rounds);
}

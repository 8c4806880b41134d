/* What the cases share: checks that are never compiled out, and memory with known contents. */
#ifndef PAGEMOVE_DRIVER_H
#define PAGEMOVE_DRIVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "moves.h"
#include "process.h"

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail(__FILE__, __LINE__, #condition, " " __VA_ARGS__);                                 \
    } while (0)

_Noreturn void fail(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The library's state of this process. */
struct pm_process *library(void);

/* A number in [0, limit), from a generator whose seed is the first argument of the driver. */
uint64_t random_below(uint64_t *seed, uint64_t limit);

/* Private anonymous memory that is registered, not inherited by a fork, and remembers what is in
 * every page: a token, or 0 for a hole. */
struct area {
    char *start;
    size_t pages;
    uint64_t *tokens;
};

enum { SMALL_PAGES = 0, HUGE_PAGES = 1 };

struct area area_make(size_t pages, int huge);
void area_free(struct area *area);
uint64_t area_at(const struct area *area, size_t page);
void area_fill(struct area *area, size_t page, uint64_t token);
void area_discard(struct area *area, size_t page, size_t pages);
/* Every page has what is remembered of it. */
void area_check(const struct area *area);
/* The token of one page as it is, 0 for a hole; fails if the contents are nobody's. */
uint64_t area_look(const struct area *area, size_t page);

void page_register(char *start, size_t length);
int page_there(const char *page);

/* A thread that calls one function again and again until told to stop. */
struct sibling {
    pthread_t thread;
    void (*step)(void *);
    void *argument;
    atomic_int stop;
    atomic_long rounds;
};

void sibling_start(struct sibling *sibling, void (*step)(void *), void *argument);
long sibling_stop(struct sibling *sibling);

/* Both looks at the kernel: believing it, and seeing through the stale EAGAIN. */
void with_guard_and_without(void (*run)(uint64_t seed), uint64_t seed);
void set_guard(int on);

double seconds(void);

#endif

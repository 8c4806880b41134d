/* A child made by fork has no memory where its parent has paged memory: a touch is SIGSEGV. So that
 * it does not end without a word, the child gets a handler that says which region it was, and then
 * leaves the signal to whatever was there before. Only such a child gets one, and exec undoes it.
 */
#define _GNU_SOURCE
#include "inherited.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "region.h"
#include "voice.h"

enum { LONGEST = 1024 };

struct pg_stone {
    uint64_t base, length;
    int held; /* nothing else can be mapped there */
    struct pg_stone *next;
    char line[LONGEST]; /* the whole message: the handler only writes */
};

static struct pg_stone *graves;
static struct sigaction before;

struct pg_stone *pg_new_stone(void)
{
    return calloc(1, sizeof(struct pg_stone));
}

void pg_free_stone(struct pg_stone *stone)
{
    free(stone);
}

void pg_mark_grave(struct pg_stone *stone, const struct pg_region *region)
{
    static const char *const modes[] = {"r", "r+", "c"};

    if (!stone || !region->base)
        return;
    stone->base = region->base;
    stone->length = region->length;
    snprintf(stone->line, sizeof stone->line,
             "pagemove: paged memory over %.600s, mode '%s', was opened before a fork and is not "
             "there in the forked process: it raises SIGSEGV on access; open it here, be passed "
             "the array (it is pickled as a reference), or start workers by spawn or forkserver\n",
             region->store.label ? region->store.label : "", modes[region->mode]);
    /* What the child allocates next would be mapped just there, and old arrays lead into it. */
    stone->held =
        region->blank && mmap((void *)(uintptr_t)region->base, region->length, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
                              0) == (void *)(uintptr_t)region->base;
    stone->next = graves;
    graves = stone;
}

static void on_segv(int number, siginfo_t *info, void *context)
{
    uint64_t address = (uint64_t)(uintptr_t)info->si_addr;

    (void)context;
    /* Where something else is mapped by now it is not ours. */
    if (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR)
        for (const struct pg_stone *stone = graves; stone; stone = stone->next)
            if (address - stone->base < stone->length &&
                (info->si_code == SEGV_MAPERR || stone->held)) {
                pg_write_line(stone->line, strlen(stone->line));
                break;
            }
    /* The instruction is tried again, and then it is whoever's that was there before. */
    sigaction(SIGSEGV, &before, NULL);
    if (info->si_code <= 0)
        raise(number); /* nothing was touched: somebody has sent it */
}

void pg_watch_graves(void)
{
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_ONSTACK}, now;

    if (!graves || sigaction(SIGSEGV, NULL, &now))
        return;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_segv)
        return;
    sigemptyset(&action.sa_mask);
    before = now;
    sigaction(SIGSEGV, &action, NULL);
}

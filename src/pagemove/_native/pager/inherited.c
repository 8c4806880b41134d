/* A child made by fork has no memory where its parent has paged memory: a touch is SIGSEGV. So that
 * it does not end without a word, the child gets a handler that says which region it was, and then
 * leaves the signal to whatever was there before. Only such a child gets one, and exec undoes it.
 */
#define _GNU_SOURCE
#include "pager/inherited.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/mechanisms/voice.h"
#include "pager/state/terms.h"

enum { LONGEST = 1024 };

struct pg_stone {
    uint64_t base, length;
    int kept;
    int reserved; /* nothing else can be mapped there */
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

/* Not for a child's child, which does so itself, as it finds out what is there. */
static int reserve(uint64_t base, uint64_t length)
{
    void *address = (void *)(uintptr_t)base;

    if (mmap(address, length, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != address)
        return 0;
    madvise(address, length, MADV_DONTFORK);
    return 1;
}

void pg_graves_forked(void)
{
    for (struct pg_stone *stone = graves; stone; stone = stone->next)
        stone->reserved = stone->reserved && stone->length && reserve(stone->base, stone->length);
}

void pg_mark_grave(struct pg_stone *stone, uint64_t base, uint64_t length, const char *label,
                   int mode, int hold)
{
    static const struct {
        const char *name, *remedy;
    } modes[] = {
        {"r", "open it here, with fork='reopen' before the fork over a store that can be opened "
              "again, or be passed the array (it is pickled as a reference)"},
        {"r+", "flush it in the parent and open it here, or be passed the array (it is pickled as "
               "a reference)"},
        {"c", "its changes are the parent's alone: open it here without them, or be passed a copy "
              "of what is needed"},
        {"c", "make arrays here, or be passed copies as arguments"},
    };
    /* Of the arrays of an arena, which have no store. */
    int which = hold && mode != PG_READ ? 3 : mode;

    if (!stone || !base)
        return;
    stone->base = base;
    stone->length = length;
    snprintf(stone->line, sizeof stone->line,
             "pagemove: paged memory over %.600s, mode '%s', was opened before a fork and is not "
             "there in the forked process: it raises SIGSEGV on access; %s; or start workers by "
             "spawn or forkserver\n",
             label ? label : "", modes[which].name, modes[which].remedy);
    /* At once, or the stack of a thread is there. */
    if (hold && !stone->reserved)
        stone->reserved = reserve(base, length);
    if (!stone->kept) {
        stone->next = graves;
        graves = stone;
    }
    stone->kept = 1;
}

void pg_explain_grave(struct pg_stone *stone, const char *why)
{
    snprintf(stone->line, sizeof stone->line,
             "pagemove: paged memory that was opened before a fork cannot be opened again in the "
             "forked process, and raises SIGSEGV on access: %.800s\n",
             why);
}

int pg_is_reserved(const struct pg_stone *stone)
{
    return stone->reserved;
}

void pg_remove_grave(struct pg_stone *stone)
{
    stone->length = 0;
}

static void on_segv(int number, siginfo_t *info, void *context)
{
    uint64_t address = (uint64_t)(uintptr_t)info->si_addr;

    (void)context;
    /* Where something else is mapped by now it is not ours. */
    if (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR)
        for (const struct pg_stone *stone = graves; stone; stone = stone->next)
            if (address - stone->base < stone->length &&
                stone->reserved == (info->si_code == SEGV_ACCERR)) {
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

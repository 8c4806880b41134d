/* A child made by fork has no memory where its parent has paged memory, or a Memory: a touch is
 * SIGSEGV. And there is none where a region was closed that arrays still lead to. Nothing else is
 * mapped there, or they would lead to that. So that the process does not end without a word, it
 * gets a handler that says which region it was, and then leaves the signal
 * to whatever was there before. Only such a child gets one, and who closes a region so, until its
 * last array has gone; exec undoes it. */
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
    int closed;   /* its region was closed by this process */
    int at_rest;  /* which will not touch the addresses any more */
    int left;     /* nothing of the program leads there any more */
    int forever;  /* a helper that cannot be ended may write there */
    int spare;    /* for the next that is closed */
    struct pg_stone *next;
    const char *said; /* the whole message: the handler only writes */
    char line[];      /* of one that is of a region */
};

static struct pg_stone *graves;
static struct sigaction before;

struct pg_stone *pg_new_stone(void)
{
    return calloc(1, sizeof(struct pg_stone) + LONGEST);
}

struct pg_stone *pg_new_stone_saying(const char *text)
{
    struct pg_stone *stone = calloc(1, sizeof *stone);

    if (stone)
        stone->said = text;
    return stone;
}

void pg_free_stone(struct pg_stone *stone)
{
    free(stone);
}

/* Not for a child's child, which does so itself, as it finds out what is there. With `over` what
 * is mapped there goes. */
static int reserve(uint64_t base, uint64_t length, int over)
{
    void *address = (void *)(uintptr_t)base;
    int how = over ? MAP_FIXED : MAP_FIXED_NOREPLACE;

    if (mmap(address, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | how, -1,
             0) != address) {
        if (over)
            munmap(address, length);
        return 0;
    }
    madvise(address, length, MADV_DONTFORK);
    return 1;
}

void pg_graves_forked(void)
{
    for (struct pg_stone *stone = graves; stone; stone = stone->next)
        stone->reserved =
            stone->reserved && stone->length && reserve(stone->base, stone->length, 0);
}

static void add(struct pg_stone *stone)
{
    if (!stone->kept) {
        stone->next = graves;
        __atomic_store_n(&graves, stone, __ATOMIC_RELEASE);
    }
    stone->kept = 1;
}

enum pg_remedy pg_remedy_of(const struct pg_config *config)
{
    if (config->taking)
        return PG_REMEDY_TAKEN;
    if (config->blank)
        return PG_REMEDY_ARRAYS;
    if (config->compression)
        return PG_REMEDY_COMPRESSED;
    if (config->mode == PG_WRITE && config->helper && !config->outlives)
        return PG_REMEDY_HELPER;
    return (enum pg_remedy)config->mode;
}

static void hold(struct pg_stone *stone, uint64_t base, uint64_t length, int over)
{
    int reserved = stone->reserved && !over;

    /* First: a touch after that may end the process. */
    if (over)
        stone->reserved = 1;
    stone->base = base;
    __atomic_store_n(&stone->length, length, __ATOMIC_RELEASE);
    add(stone);
    /* At once, or the stack of a thread is there. */
    if (!reserved)
        stone->reserved = reserve(base, length, over);
}

void pg_mark_grave(struct pg_stone *stone, uint64_t base, uint64_t length, const char *label,
                   int mode, enum pg_remedy remedy, int over)
{
    static const char *const modes[] = {"r", "r+", "c"};
    static const char *const remedies[] = {
        [PG_REMEDY_READ] = "open it here, with fork='reopen' before the fork over a store that can "
                           "be opened again, or be passed the array (it is pickled as a reference)",
        [PG_REMEDY_WRITE] = "flush it in the parent and open it here, or be passed the array (it "
                            "is pickled as a reference)",
        [PG_REMEDY_PRIVATE] = "its changes are the parent's alone: open it here without them, or "
                              "be passed a copy of what is needed",
        [PG_REMEDY_ARRAYS] = "make arrays here, or be passed copies as arguments",
        [PG_REMEDY_COMPRESSED] = "compressed memory is inherited if it has a resident_limit of its "
                                 "own, and fork='reopen'; or be passed a copy of what is needed",
        [PG_REMEDY_HELPER] = "it ends with the parent: make one here, or be passed a copy of what "
                             "is needed",
        [PG_REMEDY_TAKEN] = "hand it over again, by pagemove.serve in the parent and open_array of "
                            "the URL here, or be passed a copy of what is needed",
    };

    if (!stone || !base)
        return;
    snprintf(stone->line, LONGEST,
             "pagemove: paged memory over %.600s, mode '%s', was opened before a fork and is not "
             "there in the forked process: it raises SIGSEGV on access; %s; or start workers by "
             "spawn or forkserver\n",
             label ? label : "", modes[mode], remedies[remedy]);
    stone->said = stone->line;
    hold(stone, base, length, over);
}

void pg_mark_memory(struct pg_stone *stone, uint64_t base, uint64_t length)
{
    hold(stone, base, length, 0);
}

void pg_explain_grave(struct pg_stone *stone, const char *why)
{
    snprintf(stone->line, LONGEST,
             "pagemove: paged memory that was opened before a fork cannot be opened again in the "
             "forked process, and raises SIGSEGV on access: %.800s\n",
             why);
    stone->said = stone->line;
}

void pg_mark_lost(struct pg_stone *stone, uint64_t base, uint64_t length, const char *line)
{
    snprintf(stone->line, LONGEST, "%s", line);
    stone->said = stone->line;
    stone->reserved = 1;
    stone->base = base;
    __atomic_store_n(&stone->length, length, __ATOMIC_RELEASE);
    add(stone);
}

int pg_is_reserved(const struct pg_stone *stone)
{
    return stone->reserved;
}

void pg_remove_grave(struct pg_stone *stone)
{
    stone->length = 0;
}

struct pg_stone *pg_spare_stone(void)
{
    struct pg_stone *stone = graves;

    while (stone && !stone->spare)
        stone = stone->next;
    return stone;
}

void pg_mark_closed(struct pg_stone *stone, uint64_t base, uint64_t length, const char *label,
                    int mode)
{
    static const char *const modes[] = {"r", "r+", "c"};

    snprintf(stone->line, LONGEST,
             "pagemove: paged memory over %.600s, mode '%s', was closed by PagedArray.close(), and "
             "an array of it is still in use: it raises SIGSEGV on access; close it after the last "
             "use, or copy what is needed later (numpy.array)\n",
             label ? label : "", modes[mode]);
    stone->said = stone->line;
    stone->closed = stone->reserved = 1;
    stone->at_rest = stone->left = stone->forever = stone->spare = 0;
    stone->base = base;
    __atomic_store_n(&stone->length, length, __ATOMIC_RELEASE);
    add(stone);
}

/* Who reads the list meanwhile touches something else. */
static void clear(struct pg_stone *stone)
{
    if (!stone->forever)
        munmap((void *)(uintptr_t)stone->base, stone->length);
    __atomic_store_n(&stone->length, 0, __ATOMIC_RELEASE);
    stone->spare = 1;
    pg_watch_graves();
}

void pg_rest(struct pg_stone *stone, int forever)
{
    stone->at_rest = 1;
    stone->forever = forever;
    if (stone->left)
        clear(stone);
}

void pg_leave_grave(struct pg_stone *stone)
{
    stone->left = 1;
    if (stone->at_rest)
        clear(stone);
}

static void on_segv(int number, siginfo_t *info, void *context)
{
    uint64_t address = (uint64_t)(uintptr_t)info->si_addr;

    (void)context;
    /* Where something else is mapped by now it is not ours. */
    if (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR)
        for (const struct pg_stone *stone = __atomic_load_n(&graves, __ATOMIC_ACQUIRE); stone;
             stone = stone->next)
            if (address - stone->base < __atomic_load_n(&stone->length, __ATOMIC_ACQUIRE) &&
                stone->reserved == (info->si_code == SEGV_ACCERR)) {
                pg_write_line(stone->said, strlen(stone->said));
                break;
            }
    /* The instruction is tried again, and then it is whoever's that was there before. */
    sigaction(SIGSEGV, &before, NULL);
    if (info->si_code <= 0)
        raise(number); /* nothing was touched: somebody has sent it */
}

/* Those of a fork may get a region again, or never: they are watched as long as there are any. */
static int any_to_watch(void)
{
    const struct pg_stone *stone = graves;

    while (stone && stone->spare)
        stone = stone->next;
    return stone != NULL;
}

void pg_watch_graves(void)
{
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_ONSTACK}, now;
    int ours;

    if (!graves || sigaction(SIGSEGV, NULL, &now))
        return;
    ours = now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_segv;
    if (!any_to_watch() && ours)
        sigaction(SIGSEGV, &before, NULL);
    if (!any_to_watch() || ours)
        return;
    sigemptyset(&action.sa_mask);
    before = now;
    sigaction(SIGSEGV, &action, NULL);
}

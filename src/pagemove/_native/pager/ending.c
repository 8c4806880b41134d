/* SIGTERM with the default action ends a program without any cleaning up, and what no flush has
 * saved would be lost. So a handler in its place has a thread save it first, and then ends the
 * process as the default action does.
 *
 * In C, and by a thread of its own: a handler in Python runs when the main thread next comes to the
 * interpreter, and that may be in C code for minutes, or wait for a page. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "pager/engine/work.h"
#include "pager/life.h"
#include "pager/mechanisms/threads.h"
#include "pager/mechanisms/voice.h"
#include "pager/pager.h"

/* What several regions are saved in. Whoever is the last to have it frees it: who waits does so for
 * a while only, and a flush takes as long as it does. */
struct pg_saving {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned pending, failed;
    int awaited;
};

static pthread_mutex_t arming = PTHREAD_MUTEX_INITIALIZER;
static sem_t asked;
static pid_t owner;           /* whose watching thread there is */
static void (*replaced)(int); /* the interpreter's, which comes back with what stands for ours */
static uint64_t grace;
static unsigned survived; /* times that this process was not ended by it */

static void let_go(struct pg_saving *saving)
{
    int last = !saving->pending && !saving->awaited;

    pthread_cond_broadcast(&saving->changed);
    pthread_mutex_unlock(&saving->lock);
    if (last)
        free(saving);
}

void pg_note_saved(struct pg_saving *saving, const struct pg_region *region, int error)
{
    /* One that is lost to the program says so even when its changes are saved. */
    int failed = error && error != -PG_LOST;

    if (failed)
        pg_say("pagemove: changes of %s could not be saved: %s\n", region->store.label,
               pg_cause_of(-error));
    pthread_mutex_lock(&saving->lock);
    saving->failed += failed != 0;
    saving->pending--;
    let_go(saving);
}

static void begin_saving(struct pg_region *region, void *argument)
{
    struct pg_saving *saving = argument;
    int error;

    if (region->mode != PG_WRITE || !region->outlives)
        return;
    pthread_mutex_lock(&saving->lock);
    saving->pending++;
    pthread_mutex_unlock(&saving->lock);
    error = pg_post_flush(region, saving);
    if (!error)
        return;
    pthread_mutex_lock(&saving->lock);
    saving->pending--;
    saving->failed += error != -ESHUTDOWN;
    pthread_mutex_unlock(&saving->lock);
}

static void say_late(struct pg_region *region, void *argument)
{
    const uint64_t *nanoseconds = argument;
    int late;

    pthread_mutex_lock(&region->lock);
    late = region->mode == PG_WRITE && region->outlives &&
           (region->blocks.dirty || region->writing[0] || region->writing[1] || region->unsynced ||
            region->syncing);
    pthread_mutex_unlock(&region->lock);
    if (late)
        pg_say("pagemove: changes of %s could not be saved within %.3g seconds: its store takes "
               "longer\n",
               region->store.label, (double)*nanoseconds / 1e9);
}

unsigned pg_save_all(uint64_t nanoseconds)
{
    struct pg_saving *saving = calloc(1, sizeof *saving);
    uint64_t until = pg_later(pg_now(), nanoseconds);
    pthread_condattr_t monotonic;
    unsigned late, failed;

    if (!saving)
        return 1;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&saving->lock, NULL);
    pthread_cond_init(&saving->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    saving->awaited = 1;
    pg_for_all_regions(begin_saving, saving);
    pthread_mutex_lock(&saving->lock);
    while (saving->pending && pg_now() < until)
        pg_wait_until(&saving->changed, &saving->lock, until);
    late = saving->pending;
    failed = saving->failed;
    saving->awaited = 0;
    let_go(saving);
    if (late)
        pg_for_all_regions(say_late, &nanoseconds);
    return late + failed;
}

/* Async-signal-safe, as is all that a handler calls. */
static void on_sigterm(int number, siginfo_t *info, void *context)
{
    unsigned before = __atomic_load_n(&survived, __ATOMIC_ACQUIRE);
    int error = errno;

    (void)context;
    if (getpid() != owner) {
        /* A child that was made without the C library's fork. It dies when this returns. */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    sem_post(&asked);
    /* Who sends it to himself does not expect to come back. */
    if (info->si_code <= 0 && info->si_pid == owner)
        while (__atomic_load_n(&survived, __ATOMIC_ACQUIRE) == before)
            poll(NULL, 0, 10);
    errno = error;
}

static int is_ours(void)
{
    struct sigaction action;

    return !sigaction(SIGTERM, NULL, &action) && action.sa_flags & SA_SIGINFO &&
           action.sa_sigaction == on_sigterm;
}

/* Whether the process's handler may be replaced. */
static int is_replaceable(int replace)
{
    struct sigaction action;

    if (sigaction(SIGTERM, NULL, &action))
        return 0;
    if (replace)
        replaced = action.sa_handler;
    return action.sa_handler == SIG_DFL || (replaced && action.sa_handler == replaced);
}

static int is_default(void)
{
    struct sigaction action;

    return !sigaction(SIGTERM, NULL, &action) && !(action.sa_flags & SA_SIGINFO) &&
           action.sa_handler == SIG_DFL;
}

static int set_ours(void)
{
    /* Not blocked in the handler: from the first process of a container it would be kept until
     * then, and given to another thread it would end that process after all. */
    struct sigaction action = {.sa_sigaction = on_sigterm,
                               .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK | SA_NODEFER};

    sigemptyset(&action.sa_mask);
    return sigaction(SIGTERM, &action, NULL) ? -errno : 0;
}

static void *watch(void *unused)
{
    for (;;) {
        int ours;
        if (sem_wait(&asked))
            continue;
        pg_save_all(__atomic_load_n(&grace, __ATOMIC_ACQUIRE));
        while (!sem_trywait(&asked))
            ; /* asked again meanwhile: that is done */
        ours = is_ours();
        if (ours)
            signal(SIGTERM, SIG_DFL);
        kill(getpid(), SIGTERM);
        /* The first process of a container has no default action. The next one may find more. */
        pg_sleep(100000000);
        if (ours && is_default())
            set_ours();
        __atomic_add_fetch(&survived, 1, __ATOMIC_RELEASE);
    }
    return unused;
}

static int start_watching(void)
{
    pthread_t thread;
    int error;

    if (owner == getpid())
        return 0;
    if (sem_init(&asked, 0, 0))
        return -errno;
    error = pg_start_thread(&thread, "pagemove-ending", watch, NULL);
    if (error)
        return error;
    pthread_detach(thread);
    owner = getpid();
    return 0;
}

int pg_save_on_sigterm(uint64_t nanoseconds, int replace)
{
    int error = 0;

    pthread_mutex_lock(&arming);
    __atomic_store_n(&grace, nanoseconds, __ATOMIC_RELEASE);
    if (!is_ours() || owner != getpid()) {
        error = is_replaceable(replace) ? start_watching() : -EBUSY;
        if (!error)
            error = set_ours();
    }
    pthread_mutex_unlock(&arming);
    return error;
}

void pg_leave_sigterm(void)
{
    pthread_mutex_lock(&arming);
    if (is_ours())
        signal(SIGTERM, SIG_DFL);
    pthread_mutex_unlock(&arming);
}

void pg_ending_forked(void)
{
    pthread_mutex_init(&arming, NULL);
    if (is_ours())
        signal(SIGTERM, SIG_DFL);
}

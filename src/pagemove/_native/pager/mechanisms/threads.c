#define _GNU_SOURCE
#include "pager/mechanisms/threads.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STACK = 256 << 10 };

struct start {
    void *(*function)(void *);
    void *argument;
};

struct own {
    pid_t id;
    struct own *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct own *owned;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static int keyless;

/* Also of a thread that does not return: the interpreter ends those of its own that are still there
 * at the end by pthread_exit. */
static void forget(void *mine)
{
    struct own **at = &owned;

    pthread_mutex_lock(&lock);
    while (*at && *at != mine)
        at = &(*at)->next;
    if (*at)
        *at = (*at)->next;
    pthread_mutex_unlock(&lock);
    free(mine);
}

static void make_key(void)
{
    keyless = pthread_key_create(&key, forget);
}

void pg_enter_own(void)
{
    struct own *mine;

    pthread_once(&once, make_key);
    mine = keyless ? NULL : malloc(sizeof *mine);
    if (!mine || pthread_setspecific(key, mine)) {
        free(mine);
        return;
    }
    mine->id = (pid_t)syscall(SYS_gettid);
    pthread_mutex_lock(&lock);
    mine->next = owned;
    owned = mine;
    pthread_mutex_unlock(&lock);
}

void pg_leave_own(void)
{
    void *mine = keyless ? NULL : pthread_getspecific(key);

    if (!mine)
        return;
    pthread_setspecific(key, NULL);
    forget(mine);
}

static void *live(void *argument)
{
    struct start start = *(struct start *)argument;

    free(argument);
    pg_enter_own();
    return start.function(start.argument);
}

int pg_start_thread(pthread_t *thread, const char *name, void *(*function)(void *), void *argument)
{
    struct start *start = malloc(sizeof *start);
    pthread_attr_t attributes;
    sigset_t all, before;
    int error;

    if (!start)
        return -ENOMEM;
    *start = (struct start){function, argument};
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    /* Signals are for the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = -pthread_create(thread, &attributes, live, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error)
        free(start);
    else
        pthread_setname_np(*thread, name);
    return error;
}

int pg_is_own_thread(pid_t id)
{
    const struct own *own;

    pthread_mutex_lock(&lock);
    for (own = owned; own && own->id != id;)
        own = own->next;
    pthread_mutex_unlock(&lock);
    return own != NULL;
}

void pg_threads_forked(void)
{
    pthread_mutex_init(&lock, NULL);
    owned = NULL;
}

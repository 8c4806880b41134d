/* Threads of the pager's own. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_THREADS_H
#define PAGEMOVE_PAGER_MECHANISMS_THREADS_H

#include <pthread.h>
#include <sys/types.h>

/* A variable of each thread. The GNU C library has room for a few of them in every thread's stack;
 * for others it calls malloc when a thread first uses one, and ends the process where there is no
 * memory (RLIMIT_AS, RLIMIT_DATA). musl has memory for all when the library is loaded. */
#ifdef __GLIBC__
#define PG_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define PG_THREAD_LOCAL __thread
#endif

/* Start a thread that takes no signals. 0 or -errno. Needs no lock. */
int pg_start_thread(pthread_t *thread, const char *name, void *(*function)(void *), void *argument);

/* For threads that are not started so: whoever calls this keeps no process alive (leader.c) until
 * it leaves, or ends. Without memory for that it does. */
void pg_enter_own(void);
void pg_leave_own(void);

/* Whether that is such a thread, or one started by pg_start_thread that has not returned yet. */
int pg_is_own_thread(pid_t id);

/* In the child of a fork there is none. */
void pg_threads_forked(void);

#endif

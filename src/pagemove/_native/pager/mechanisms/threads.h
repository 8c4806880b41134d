/* Threads of the pager's own. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_THREADS_H
#define PAGEMOVE_PAGER_MECHANISMS_THREADS_H

#include <pthread.h>

/* Start a thread that takes no signals. 0 or -errno. Needs no lock. */
int pg_start_thread(pthread_t *thread, const char *name, void *(*function)(void *), void *argument);

#endif

/* The C library calls exit(0) when the last thread of a process returns (pthread_exit(3)). The
 * pager's threads never do, so where the first thread returns, and not main, nobody would: that is
 * so in a child that was forked by another thread than the main one. A thread is started then that
 * waits until only the pager's are left. It has the program's file table, not the pager's
 * (table.c): exit handlers write to the program's files. The first thread itself must not wait, or
 * whoever joins it would wait with it. */
#define _GNU_SOURCE
#include "pager/mechanisms/leader.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptors.h"
#include "pager/mechanisms/threads.h"

/* ms between looks, at first and in the end. */
enum { SOON = 1, LATE = 50 };

/* Bytes of one list of threads: more than a thousand. */
enum { LIST = 32 << 10 };

/* Of all workers of io_uring, in /proc/self/task/N/stat (PF_IO_WORKER of linux/sched.h). */
enum { IO_WORKER = 0x10 };

static pthread_key_t key;

/* The signals that the first thread did not take. */
static sigset_t mask;

static ssize_t read_file(const char *path, char *text, size_t size)
{
    int fd = pm_keep(open(path, O_RDONLY | O_CLOEXEC));
    struct pm_identity identity = pm_identify(fd);
    ssize_t got = fd < 0 ? -1 : read(fd, text, size);

    pm_close(fd, identity);
    return got;
}

/* Whether it is known not to be the program's. Of one that has ended since nothing is: it may have
 * started another, which is not on the list. */
static int is_needless(pid_t id)
{
    char path[64], text[512];
    const char *rest;
    unsigned flags;
    ssize_t got;
    char state;

    if (pg_is_own_thread(id))
        return 1;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)id);
    got = read_file(path, text, sizeof text - 1);
    if (got <= 0)
        return 0;
    text[got] = 0;
    rest = strrchr(text, ')');
    if (!rest || sscanf(rest, ") %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
        return 0;
    /* The first thread stays in the list until the process ends. */
    return (id == getpid() && state == 'Z') || (strstr(text, " (iou-") && flags & IO_WORKER);
}

/* All entries by one call: the next would go on at a place that may have moved. -1 if there are
 * more. */
static ssize_t list_threads(char *list)
{
    int fd = pm_keep(open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct pm_identity identity = pm_identify(fd);
    ssize_t got = fd < 0 ? -1 : syscall(SYS_getdents64, fd, list, LIST);
    char more[512];

    if (got > 0 && syscall(SYS_getdents64, fd, more, sizeof more))
        got = -1;
    pm_close(fd, identity);
    return got;
}

/* Whether no thread of the program is left. The list ends early at a thread that ends while it is
 * written; so whoever is on it has to be asked after that. */
static int is_last(void)
{
    /* 64-bit, as the system call's. */
    _Alignas(struct dirent) char list[LIST];
    pid_t mine = (pid_t)syscall(SYS_gettid);
    ssize_t got = list_threads(list);
    int found = 0;

    for (ssize_t at = 0; at < got;) {
        const struct dirent *entry = (const struct dirent *)(const void *)(list + at);
        pid_t id = atoi(entry->d_name); /* 0 of "." and ".." */
        at += entry->d_reclen;
        if (id && id != mine && !is_needless(id))
            return 0;
        found |= id == mine;
    }
    /* In a /proc of other numbers nothing is known. */
    return found;
}

static void *wait_for_last(void *unused)
{
    for (int pause = SOON; !is_last(); pause = 2 * pause < LATE ? 2 * pause : LATE)
        poll(NULL, 0, pause);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    exit(0);
    return unused;
}

/* Exit handlers find a stack as large as in any thread of the program. */
static void leader_ends(void *unused)
{
    sigset_t all;
    pthread_t thread;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    error = pthread_create(&thread, NULL, wait_for_last, NULL);
    if (error)
        wait_for_last(unused);
    pthread_setname_np(thread, "pagemove-last");
    pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

static void in_child(void)
{
    pg_threads_forked();
    /* Whoever forks is the first thread of the child. */
    pthread_setspecific(key, &key);
}

int pg_leader_begin(void)
{
    static int begun;
    int error;

    if (begun)
        return 0;
    error = pthread_key_create(&key, leader_ends);
    if (!error)
        error = pthread_atfork(NULL, NULL, in_child);
    if (error)
        return -error;
    begun = 1;
    if (syscall(SYS_gettid) == getpid())
        pthread_setspecific(key, &key);
    return 0;
}

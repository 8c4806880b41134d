/* How the helper process comes to be: by two forks that copy no memory.
 *
 * It is no child of the program, whose wait() would wait for it, whose SIGCHLD handler would be
 * told of it, and which may end or reap all of its children. (An exit signal of 0 does not do:
 * execve(2) sets it to SIGCHLD.) A process in between, which exits at once, makes it init's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "descriptors.h"
#include "pager/mechanisms/helper.h"

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif

extern char **environ;

enum { CONTROL_FD = 3, STACK = 64 << 10, WAIT_BY_PIDFD = 3 };

struct start {
    char *const *argv;
    char *stack;
    int control, process, error;
};

/* The helper may have what its parent prints to, but must not read what is typed, nor print into a
 * file that has got the number. What the parent has closed must not become a lane's socket. */
static void set_standard(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (int fd = 0; fd < 3; fd++) {
        if (fd == STDIN_FILENO || fcntl(fd, F_GETFD) & FD_CLOEXEC || !pm_may_print(fd)) {
            /* dup2 onto itself would leave it closed on exec. */
            if (null == fd)
                fcntl(fd, F_SETFD, 0);
            else
                dup2(null, fd);
        }
    }
}

/* In the helper. The memory is the parent's, so it does no more than it has to. */
static int run(void *argument)
{
    struct start *start = argument;
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigset_t none;

    for (int number = 1; number < NSIG; number++)
        sigaction(number, &standard, NULL);
    if (dup2(start->control, CONTROL_FD) < 0) {
        start->error = errno;
        _exit(127);
    }
    set_standard();
#ifdef SYS_close_range
    /* Before Linux 5.9 it inherits what the program lets others inherit. */
    syscall(SYS_close_range, CONTROL_FD + 1, ~0U, 0);
#endif
    /* Python may import from where it starts: not from where the user stands. It goes back there.
     */
    if (chdir("/")) {
        start->error = errno;
        _exit(127);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(start->argv[0], start->argv, environ);
    start->error = errno;
    _exit(127);
}

/* In between: it has the parent's descriptors too, so that the pidfd arrives there. */
static int between(void *argument)
{
    struct start *start = argument;

    if (clone(run, start->stack + STACK, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, start,
              &start->process) < 0)
        start->error = errno;
    _exit(0);
}

int pg_spawn(char *const *argv, int control)
{
    struct start start = {.argv = argv, .control = control, .process = -1};
    sigset_t all, before;
    char *stacks;
    pid_t pid;

    /* dup2 onto itself would leave it closed on exec. */
    if (control == CONTROL_FD)
        return -EINVAL;
    stacks = malloc(2 * STACK);
    if (!stacks)
        return -ENOMEM;
    start.stack = stacks;
    /* No handler of the program may run in a process that shares its memory. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid = clone(between, stacks + 2 * STACK, CLONE_VM | CLONE_VFORK | CLONE_FILES, &start);
    if (pid < 0)
        start.error = errno;
    else
        while (waitpid(pid, NULL, __WCLONE) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    free(stacks);
    if (start.error) {
        siginfo_t ignored;
        if (start.process >= 0) {
            /* It is this process's child where this one is the init of a container. */
            waitid((idtype_t)WAIT_BY_PIDFD, (id_t)start.process, &ignored, WEXITED | __WALL);
            close(start.process);
        }
        return -start.error;
    }
    return pg_above_standard(start.process);
}

/* open(2) with O_TMPFILE as on a file system that has none (NO_TMPFILE=1), or as on a slow one: it
 * makes the file that TMPFILE_GATE names, and goes on when that is gone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef int (*open_function)(const char *path, int flags, ...);

static int open_as(const char *name, const char *path, int flags, int mode)
{
    open_function real = (open_function)dlsym(RTLD_NEXT, name);
    const char *gate = getenv("TMPFILE_GATE");
    struct timespec pause = {0, 1000000};

    if ((flags & O_TMPFILE) != O_TMPFILE)
        return real(path, flags, mode);
    if (getenv("NO_TMPFILE")) {
        errno = EOPNOTSUPP;
        return -1;
    }
    if (gate) {
        close(real(gate, O_CREAT | O_WRONLY, 0600));
        while (!access(gate, F_OK))
            nanosleep(&pause, NULL);
    }
    return real(path, flags, mode);
}

static int mode_of(int flags, va_list arguments)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    int mode;

    va_start(arguments, flags);
    mode = mode_of(flags, arguments);
    va_end(arguments);
    return open_as("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    int mode;

    va_start(arguments, flags);
    mode = mode_of(flags, arguments);
    va_end(arguments);
    return open_as("open64", path, flags, mode);
}

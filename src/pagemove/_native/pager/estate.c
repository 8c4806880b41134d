#define _GNU_SOURCE
#include "pager/estate.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pager/inherited.h"
#include "pager/life.h"
#include "pager/mechanisms/copies.h"
#include "pager/mechanisms/table.h"
#include "pager/mechanisms/threads.h"
#include "pager/mechanisms/voice.h"
#include "uapi.h"

enum { EVENTS = 16, STANDARD = 3, LONGEST_REASON = 800 };

static void close_files(struct pg_heir *heir)
{
    const struct pg_helper *helper = heir->opening->config.helper;

    if (helper && helper->config_fd >= 0) {
        close(helper->config_fd);
        close(helper->log_fd);
    } else if (heir->fd >= 0) {
        close(heir->fd);
    }
}

/* Open the file by its name, and see that it is the same. */
static int open_file(struct pg_heir *heir)
{
    const struct pg_config *config = &heir->opening->config;
    struct stat found;
    int flags;

    heir->fd = open(config->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (heir->fd < 0 || fstat(heir->fd, &found))
        return -errno;
    if (!pm_is_still(heir->fd, config->identities[0]) ||
        (!S_ISBLK(found.st_mode) &&
         found.st_mtim.tv_sec * INT64_C(1000000000) + found.st_mtim.tv_nsec != config->modified)) {
        snprintf(heir->text, sizeof heir->text,
                 "the file is not what it was when it was opened; open it again");
        return -ESTALE;
    }
    flags = fcntl(heir->fd, F_GETFL);
    return fcntl(heir->fd, F_SETFL, flags & ~O_NONBLOCK) ? -errno : 0;
}

/* Map it where the parent has it, and have faults there wait. For the thread that waits for them.
 */
static int map(struct pg_estate *mine, struct pg_heir *heir)
{
    const struct pg_config *config = &heir->opening->config;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = heir};
    void *base = (void *)(uintptr_t)heir->base;
    int error = !config->helper ? open_file(heir) : config->helper->config_fd < 0 ? -EBADF : 0;

    if (!error)
        error = pg_uffd_open_region(&heir->uffd, config->moves, config->kernel_faults);
    if (error)
        return error;
    if (mmap(base, heir->length, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != base)
        return -errno;
    if (madvise(base, heir->length, MADV_DONTFORK) ||
        (!config->dumped && madvise(base, heir->length, MADV_DONTDUMP)))
        error = -errno;
    madvise(base, heir->length, MADV_UNMERGEABLE);
    if (!error)
        error = pg_register(heir->uffd.region, heir->base, heir->length,
                            PM_REGISTER_MODE_MISSING | PM_REGISTER_MODE_WP);
    if (!error && epoll_ctl(mine->queue, EPOLL_CTL_ADD, heir->uffd.region, &event))
        error = -errno;
    return error;
}

/* A touch of it is SIGSEGV from now on: nobody is to find zeros there. */
static void bar(struct pg_heir *heir)
{
    mmap((void *)(uintptr_t)heir->base, heir->length, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    madvise((void *)(uintptr_t)heir->base, heir->length, MADV_DONTFORK);
    pg_wake(&heir->uffd, heir->base, heir->length);
    heir->barred = 1;
}

static const char *reason(const struct pg_heir *heir)
{
    return heir->text[0] ? heir->text : strerror(-heir->error);
}

void pg_fail_heir(struct pg_heir *heir, int error)
{
    char why[LONGEST_REASON];

    heir->error = error;
    heir->state = PG_HEIR_FAILED;
    heir->barred = pg_is_reserved(heir->stone); /* else it is somebody else's */
    snprintf(why, sizeof why, "%.500s: %.200s", heir->opening->config.label, reason(heir));
    pg_explain_grave(heir->stone, why);
}

static void try_to_map(struct pg_estate *mine, struct pg_heir *heir)
{
    int error = pg_is_reserved(heir->stone) ? map(mine, heir) : -EEXIST;

    if (!error) {
        pg_remove_grave(heir->stone);
        heir->state = PG_HEIR_WAITING;
        return;
    }
    pg_fail_heir(heir, error);
    if (heir->uffd.region >= 0) {
        bar(heir);
        close(heir->uffd.region);
    }
    close_files(heir);
}

static int make_bell(struct pg_estate *mine)
{
    struct pg_uffd uffd = {.region = -1};
    struct epoll_event event = {.events = EPOLLIN};
    uint64_t size = (uint64_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int error;

    if (page == MAP_FAILED)
        return -errno;
    madvise(page, size, MADV_DONTFORK);
    mine->bell = (uint64_t)(uintptr_t)page;
    error = pg_uffd_open_region(&uffd, 0, 0);
    mine->bell_uffd = uffd.region;
    if (!error)
        error = pg_register(uffd.region, mine->bell, size, PM_REGISTER_MODE_MISSING);
    if (!error && epoll_ctl(mine->queue, EPOLL_CTL_ADD, uffd.region, &event))
        error = -errno;
    return error;
}

static int own_table(const struct pg_estate *mine)
{
    size_t count = 2 + STANDARD;
    int filler = eventfd(0, EFD_CLOEXEC), error, *kept;

    for (const struct pg_heir *heir = mine->heirs; heir; heir = heir->next)
        count += 2;
    kept = calloc(count, sizeof *kept);
    if (filler < 0 || !kept) {
        error = filler < 0 ? -errno : -ENOMEM;
        free(kept);
        return error;
    }
    count = 0;
    kept[count++] = filler;
    for (int fd = 0; fd < STANDARD; fd++)
        if (fcntl(fd, F_GETFD) >= 0 && fd != filler)
            kept[count++] = fd;
    for (const struct pg_heir *heir = mine->heirs; heir; heir = heir->next) {
        const struct pg_config *config = &heir->opening->config;
        if (config->helper && config->helper->config_fd >= 0) {
            kept[count++] = config->helper->config_fd;
            kept[count++] = config->helper->log_fd;
        }
    }
    error = pg_own_table(kept, count, filler);
    free(kept);
    return error;
}

static int prepare(struct pg_estate *mine)
{
    int error = own_table(mine);

    if (error)
        return error;
    mine->queue = epoll_create1(EPOLL_CLOEXEC);
    error = mine->queue < 0 ? -errno : make_bell(mine);
    for (struct pg_heir *heir = mine->heirs; heir && !error; heir = heir->next)
        try_to_map(mine, heir);
    return error;
}

/* Of an exception the first line. */
static void say_why(const struct pg_heir *heir)
{
    const char *why = reason(heir);

    pg_say("pagemove: paged memory over %s, which this process has inherited, cannot be opened "
           "again: %.*s; touching it raises SIGSEGV\n",
           heir->opening->config.label, (int)strcspn(why, "\n"), why);
}

static void *open_one(void *argument)
{
    struct pg_heir *heir = argument;
    struct pg_estate *mine = heir->estate;
    struct pg_config config = heir->opening->config;
    struct pg_region *region = NULL;
    int error;

    config.fd = heir->fd;
    error = pg_open_as(&config, heir, &region, heir->text);
    heir->error = error;
    if (error) {
        /* First: who waits for a page there may end the process. */
        say_why(heir);
        bar(heir);
    }
    /* The region has its own of these. */
    close_files(heir);
    close(heir->uffd.region);
    pthread_mutex_lock(&mine->lock);
    heir->region = region;
    heir->state = error ? PG_HEIR_FAILED : PG_HEIR_OPEN;
    pthread_cond_broadcast(&mine->changed);
    pthread_mutex_unlock(&mine->lock);
    return NULL;
}

/* Wants the lock. Drops it. */
static void begin_opening(struct pg_estate *mine, struct pg_heir *heir)
{
    pthread_t thread;

    if (heir->state != PG_HEIR_WAITING)
        return;
    heir->state = PG_HEIR_OPENING;
    epoll_ctl(mine->queue, EPOLL_CTL_DEL, heir->uffd.region, NULL);
    pthread_mutex_unlock(&mine->lock);
    /* A helper process takes long to start, and others are waited for meanwhile. */
    if (pg_start_thread(&thread, "pagemove-open", open_one, heir))
        open_one(heir);
    else
        pthread_detach(thread);
    pthread_mutex_lock(&mine->lock);
}

/* Wants the lock. */
static void end_waiting(struct pg_estate *mine, struct pg_heir *heir)
{
    if (heir->state != PG_HEIR_WAITING)
        return;
    epoll_ctl(mine->queue, EPOLL_CTL_DEL, heir->uffd.region, NULL);
    munmap((void *)(uintptr_t)heir->base, heir->length);
    close(heir->uffd.region);
    close_files(heir);
    heir->state = PG_HEIR_ENDED;
}

static void answer_bell(struct pg_estate *mine)
{
    static const char zeros[65536];
    const struct pg_uffd uffd = {.region = mine->bell_uffd};
    struct pm_uffd_msg message;

    if (read(mine->bell_uffd, &message, sizeof message) != sizeof message)
        return;
    pthread_mutex_lock(&mine->lock);
    if (mine->caller) {
        if (mine->ends)
            end_waiting(mine, mine->caller);
        else
            begin_opening(mine, mine->caller);
        mine->caller = NULL;
    }
    pthread_mutex_unlock(&mine->lock);
    pg_copy_in(&uffd, mine->bell, (uint64_t)(uintptr_t)zeros, (uint64_t)sysconf(_SC_PAGESIZE), 0);
}

void *pg_wait_for_heirs(void *argument)
{
    struct pg_estate *mine = argument;
    struct epoll_event events[EVENTS];

    pthread_mutex_lock(&mine->lock);
    mine->error = prepare(mine);
    mine->ready = 1;
    pthread_cond_broadcast(&mine->changed);
    pthread_mutex_unlock(&mine->lock);
    while (!mine->error) {
        int count = epoll_wait(mine->queue, events, EVENTS, -1);

        /* The bell comes last: who rings it may end one that another event is of. */
        for (int i = 0; i < count; i++)
            if (events[i].data.ptr) {
                pthread_mutex_lock(&mine->lock);
                begin_opening(mine, events[i].data.ptr);
                pthread_mutex_unlock(&mine->lock);
            }
        for (int i = 0; i < count; i++)
            if (!events[i].data.ptr)
                answer_bell(mine);
    }
    return NULL;
}

void pg_ring_for(struct pg_estate *mine, struct pg_heir *heir, int ends)
{
    volatile char *bell = (volatile char *)(uintptr_t)mine->bell;

    pthread_mutex_lock(&mine->ringing);
    pthread_mutex_lock(&mine->lock);
    mine->caller = heir;
    mine->ends = ends;
    pthread_mutex_unlock(&mine->lock);
    (void)*bell;
    madvise((void *)(uintptr_t)mine->bell, (size_t)sysconf(_SC_PAGESIZE), MADV_DONTNEED);
    pthread_mutex_unlock(&mine->ringing);
}

/* What a forked child inherits: regions of mode "r", at the addresses where its parent has them.
 *
 * A fork is to cost little, for many children touch nothing and most execute another program. So of
 * a region the child gets the mapping, a userfaultfd it is registered with, and the file, all while
 * the program is in fork and has one thread. One thread waits for the first fault in any of them:
 * the region is opened then, and reads the fault itself from the same userfaultfd. A system call
 * finds the memory as a load does, which it would not with a handler for SIGSEGV.
 *
 * That thread has a table of descriptors of its own, as all of the pager have, so a child that
 * closes all it knows, as daemons do, keeps its regions. The program's threads cannot write to a
 * descriptor there. They ring: they touch a page that is not there, and go on when it is.
 */
#define _GNU_SOURCE
#include "pager/heirs.h"

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
#include "pager/mechanisms/table.h"
#include "pager/mechanisms/threads.h"
#include "pager/mechanisms/voice.h"
#include "pager/opening.h"
#include "uapi.h"

/* UNSERVED: in a child that Python does not know of, or about to be there. */
enum state { UNSERVED, WAITING, OPENING, OPEN, FAILED, ENDED };
enum { EVENTS = 16, STANDARD = 3, LONGEST_REASON = 800 };

struct pg_heir {
    const struct pg_region *origin; /* what was first opened, in whichever process */
    struct pg_opening *opening;     /* what it is opened with */
    uint64_t base, length;
    struct pg_uffd uffd;
    int fd; /* of the file */
    enum state state;
    struct pg_region *region;
    int error, barred; /* barred: its addresses are taken, but not to be touched */
    char text[PG_TEXT];
    struct pg_stone *stone;
    struct pg_heir *next, **link;
};

static struct estate {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* the state of an heir, or `ready` */
    int ready, error;
    struct pg_heir *heirs;
    int queue; /* epoll, of the userfaultfds of those that wait */

    pthread_mutex_t ringing;
    uint64_t bell;
    int bell_uffd;
    struct pg_heir *caller; /* who it rings for */
    int ends;               /* it is to end, not to be opened */
} *estate;

static struct estate *new_estate(void)
{
    struct estate *made = calloc(1, sizeof *made);

    if (!made)
        return NULL;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->changed, NULL);
    pthread_mutex_init(&made->ringing, NULL);
    made->queue = made->bell_uffd = -1;
    return made;
}

/* Not freed when another has it in its turn: that of the parent is in use there. */
static void add(const struct pg_region *origin, struct pg_opening *opening, struct pg_stone *stone,
                uint64_t base, uint64_t length)
{
    struct pg_heir *heir = stone ? calloc(1, sizeof *heir) : NULL;

    if (!estate)
        estate = new_estate();
    if (!heir || !estate) {
        free(heir);
        return;
    }
    heir->origin = origin;
    heir->opening = opening;
    /* The parent's. And a helper is given what is this process's, or cannot run. */
    opening->config.budget = NULL;
    opening->helper.config_fd = opening->helper.log_fd = -1;
    heir->stone = stone;
    heir->base = base;
    heir->length = length;
    heir->fd = heir->uffd.region = heir->uffd.staging = heir->uffd.pagemap = heir->uffd.empty = -1;
    heir->next = estate->heirs;
    heir->link = &estate->heirs;
    if (heir->next)
        heir->next->link = &heir->next;
    estate->heirs = heir;
}

void pg_inherit(struct pg_region *region)
{
    const struct pg_region *origin = region->origin ? region->origin : region;

    /* Of one that was being opened the heir is there already. */
    for (const struct pg_heir *heir = estate ? estate->heirs : NULL; heir; heir = heir->next)
        if (heir->origin == origin)
            return;
    if (region->base && region->opening && region->opening->config.again)
        add(origin, region->opening, region->stone, region->base, region->length);
}

void pg_heirs_forked(void)
{
    struct estate *parents = estate;

    estate = NULL;
    for (struct pg_heir *heir = parents ? parents->heirs : NULL; heir; heir = heir->next)
        if (heir->state != OPEN) {
            const struct pg_config *config = &heir->opening->config;

            pg_mark_grave(heir->stone, heir->base, heir->length, config->label, config->mode, 1);
            add(heir->origin, heir->opening, heir->stone, heir->base, heir->length);
        }
}

struct pg_heir *pg_heir_of(const struct pg_region *origin, int early)
{
    struct estate *mine = estate;
    struct pg_heir *heir;

    if (!mine)
        return NULL;
    pthread_mutex_lock(&mine->lock);
    heir = early || mine->ready ? mine->heirs : NULL;
    while (heir && heir->origin != origin)
        heir = heir->next;
    pthread_mutex_unlock(&mine->lock);
    return heir;
}

int pg_heir_equip(struct pg_heir *heir, int config_fd, int log_fd,
                  const struct pm_identity identities[2], const char *number)
{
    struct pg_helper *helper = &heir->opening->helper;
    const char **last = (const char **)helper->argv;
    char *copy = strdup(number);

    if (!copy)
        return -ENOMEM;
    while (last[1])
        last++;
    free((char *)*last);
    *last = copy;
    helper->config_fd = config_fd;
    helper->log_fd = log_fd;
    memcpy(heir->opening->config.identities, identities, 2 * sizeof *identities);
    return 0;
}

void pg_heir_share(struct pg_heir *heir, struct pg_budget *budget)
{
    heir->opening->config.budget = budget;
}

void pg_heir_lend(struct pg_region *region, struct pg_heir *heir)
{
    region->origin = heir->origin;
    region->base = heir->base;
    region->length = heir->length;
    region->uffd = heir->uffd;
}

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
static int map(struct estate *mine, struct pg_heir *heir)
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

/* Its grave stays as it is: most children never touch it, and are not to hear of it. */
static void fail(struct pg_heir *heir, int error)
{
    char why[LONGEST_REASON];

    heir->error = error;
    heir->state = FAILED;
    heir->barred = pg_is_reserved(heir->stone); /* else it is somebody else's */
    snprintf(why, sizeof why, "%.500s: %.200s", heir->opening->config.label, reason(heir));
    pg_explain_grave(heir->stone, why);
}

static void try_to_map(struct estate *mine, struct pg_heir *heir)
{
    int error = pg_is_reserved(heir->stone) ? map(mine, heir) : -EEXIST;

    if (!error) {
        pg_remove_grave(heir->stone);
        heir->state = WAITING;
        return;
    }
    fail(heir, error);
    if (heir->uffd.region >= 0) {
        bar(heir);
        close(heir->uffd.region);
    }
    close_files(heir);
}

static int make_bell(struct estate *mine)
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

static int own_table(const struct estate *mine)
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

static int prepare(struct estate *mine)
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

static void say_why(const struct pg_heir *heir)
{
    pg_say("pagemove: paged memory over %s, which this process has inherited, cannot be opened "
           "again: %s; touching it raises SIGSEGV\n",
           heir->opening->config.label, reason(heir));
}

static void *open_one(void *argument)
{
    struct estate *mine = estate;
    struct pg_heir *heir = argument;
    struct pg_config config = heir->opening->config;
    struct pg_region *region = NULL;
    int error;

    config.fd = heir->fd;
    error = pg_open_as(&config, heir, &region, heir->text);
    if (error)
        bar(heir);
    /* The region has its own of these. */
    close_files(heir);
    close(heir->uffd.region);
    pthread_mutex_lock(&mine->lock);
    heir->region = region;
    heir->error = error;
    if (error)
        say_why(heir);
    heir->state = error ? FAILED : OPEN;
    pthread_cond_broadcast(&mine->changed);
    pthread_mutex_unlock(&mine->lock);
    return NULL;
}

/* Wants the lock. Drops it. */
static void begin_opening(struct estate *mine, struct pg_heir *heir)
{
    pthread_t thread;

    if (heir->state != WAITING)
        return;
    heir->state = OPENING;
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
static void end_waiting(struct estate *mine, struct pg_heir *heir)
{
    if (heir->state != WAITING)
        return;
    epoll_ctl(mine->queue, EPOLL_CTL_DEL, heir->uffd.region, NULL);
    munmap((void *)(uintptr_t)heir->base, heir->length);
    close(heir->uffd.region);
    close_files(heir);
    heir->state = ENDED;
}

static void answer_bell(struct estate *mine)
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

static void *wait_for_faults(void *argument)
{
    struct estate *mine = argument;
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

/* The thread of the program that touches the bell waits until what it rings for is done. */
static void ring(struct estate *mine, struct pg_heir *heir, int ends)
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

int pg_heirs_start(void (*there)(uint64_t start, uint64_t end))
{
    struct estate *mine = estate;
    pthread_t thread;
    int error;

    if (!mine || mine->ready)
        return mine ? mine->error : 0;
    /* That thread's descriptor 2 is not the program's. */
    error = pg_voice_enter();
    if (!error)
        error = pg_start_thread(&thread, "pagemove-heirs", wait_for_faults, mine);
    if (!error) {
        pthread_detach(thread);
        pthread_mutex_lock(&mine->lock);
        while (!mine->ready)
            pthread_cond_wait(&mine->changed, &mine->lock);
        error = mine->error;
        pthread_mutex_unlock(&mine->lock);
    }
    for (struct pg_heir *heir = mine->heirs; heir; heir = heir->next)
        if (error)
            fail(heir, error);
        else if (heir->state != FAILED)
            there(heir->base, heir->base + heir->length);
    return error;
}

int pg_heir_waits(const struct pg_heir *heir)
{
    struct estate *mine = estate;
    int waits;

    pthread_mutex_lock(&mine->lock);
    waits = heir->state == WAITING;
    pthread_mutex_unlock(&mine->lock);
    return waits;
}

int pg_heir_region(struct pg_heir *heir, struct pg_region **region, char text[PG_TEXT])
{
    struct estate *mine = estate;
    int error;

    pthread_mutex_lock(&mine->lock);
    if (heir->state == WAITING) {
        pthread_mutex_unlock(&mine->lock);
        ring(mine, heir, 0);
        pthread_mutex_lock(&mine->lock);
    }
    while (heir->state == OPENING)
        pthread_cond_wait(&mine->changed, &mine->lock);
    *region = heir->region;
    error = heir->error;
    memcpy(text, heir->text, PG_TEXT);
    pthread_mutex_unlock(&mine->lock);
    return error;
}

/* Return its region, if it has one, and free the rest. */
static struct pg_region *leave(struct pg_heir *heir)
{
    struct estate *mine = estate;
    struct pg_region *region;

    pthread_mutex_lock(&mine->lock);
    if (heir->state == WAITING) {
        pthread_mutex_unlock(&mine->lock);
        ring(mine, heir, 1);
        pthread_mutex_lock(&mine->lock);
    }
    while (heir->state == OPENING)
        pthread_cond_wait(&mine->changed, &mine->lock);
    *heir->link = heir->next;
    if (heir->next)
        heir->next->link = heir->link;
    pthread_mutex_unlock(&mine->lock);
    region = heir->region;
    /* The rest is the grave's, and that of the region that was inherited. */
    if (heir->barred)
        munmap((void *)(uintptr_t)heir->base, heir->length);
    free(heir);
    return region;
}

int pg_heir_close(struct pg_heir *heir)
{
    struct pg_region *region = leave(heir);

    return region ? pg_close(region) : 0;
}

void pg_heir_drop(struct pg_heir *heir, int waiting)
{
    struct pg_region *region = leave(heir);

    if (region)
        pg_drop(region, waiting);
}

void pg_heirs_before_fork(void)
{
    if (estate)
        pthread_mutex_lock(&estate->lock);
}

void pg_heirs_after_fork(void)
{
    if (estate)
        pthread_mutex_unlock(&estate->lock);
}

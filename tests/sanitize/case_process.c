/* What belongs to a process: opened once, closed under us and mended, never shared with a child. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cases.h"
#include "driver.h"
#include "uapi.h"

static int open_userfaultfds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    char target[64], path[300];
    int count = 0;

    CHECK(directory);
    for (struct dirent *entry; (entry = readdir(directory));) {
        ssize_t length;
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        length = readlink(path, target, sizeof target - 1);
        if (length > 0) {
            target[length] = 0;
            count += strstr(target, "userfaultfd") != NULL;
        }
    }
    closedir(directory);
    return count;
}

static void *use_first(void *argument)
{
    pthread_barrier_wait(argument);
    return library();
}

/* The library's state is made once, whoever comes first. */
void case_first_use(uint64_t seed)
{
    enum { THREADS = 4 };
    pthread_barrier_t barrier;
    pthread_t threads[THREADS];
    void *found;

    (void)seed;
    CHECK(!pthread_barrier_init(&barrier, NULL, THREADS));
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, use_first, &barrier));
    for (int i = 0; i < THREADS; i++) {
        CHECK(!pthread_join(threads[i], &found));
        CHECK(found == library());
    }
    pthread_barrier_destroy(&barrier);
    CHECK(open_userfaultfds() == 1);
}

/* Moves its page to and fro, and mends what the main thread breaks, as the callers of pm_move do.
 */
struct mender {
    struct area *area;
    size_t first;
    long broken;
};

static void mend_step(void *argument)
{
    struct mender *mender = argument;
    struct area *area = mender->area;
    uint64_t page = library()->page_size;
    size_t from = mender->first, to = from + 1;

    for (int way = 0; way < 2; way++) {
        int64_t moved = pm_move(library(), area_at(area, to), area_at(area, from), page, 0, 1);
        if (moved < 0) {
            struct pm_uffdio_register arg = {
                .range = {.start = area_at(area, 0), .len = area->pages * page},
                .mode = PM_REGISTER_MODE_WP,
            };
            CHECK(moved == -EBADF || moved == -ENOTTY || moved == -EINVAL, "%s",
                  strerror((int)-moved));
            CHECK(area_look(area, from) == mender->first + 1, "an error, yet it has moved");
            mender->broken++;
            pm_process_reopen();
            ioctl(library()->uffd, PM_UFFDIO_REGISTER, &arg);
            way--;
            continue;
        }
        CHECK(moved == (int64_t)page && area_look(area, to) == mender->first + 1);
        to = from;
        from = mender->first + 1;
    }
}

/* Somebody closes all descriptors, as a daemon does when it starts. */
void case_closed(uint64_t seed)
{
    enum { MENDERS = 3, CLOSINGS = 25 };
    struct area area = area_make(2 * MENDERS, SMALL_PAGES);
    struct mender menders[MENDERS];
    struct sibling siblings[MENDERS];
    uint32_t defects = library()->defects;
    long broken = 0;

    (void)seed;
    for (size_t i = 0; i < MENDERS; i++) {
        menders[i] = (struct mender){&area, 2 * i, 0};
        area_fill(&area, 2 * i, 2 * i + 1);
        sibling_start(&siblings[i], mend_step, &menders[i]);
    }
    for (int i = 0; i < CLOSINGS; i++) {
        long before = atomic_load(&siblings[0].rounds);
        while (atomic_load(&siblings[0].rounds) < before + 3)
            sched_yield();
        CHECK(!close(__atomic_load_n(&library()->uffd, __ATOMIC_RELAXED)));
    }
    for (size_t i = 0; i < MENDERS; i++) {
        sibling_stop(&siblings[i]);
        broken += menders[i].broken;
    }
    CHECK(broken >= CLOSINGS / 2, "%ld", broken);
    pm_process_reopen();
    CHECK(open_userfaultfds() <= 1 && library()->defects == defects);
    page_register(area.start, area.pages * library()->page_size);
    area_check(&area);
    area_free(&area);
}

#define CHILD_CHECK(condition)                                                                     \
    do {                                                                                           \
        if (!(condition))                                                                          \
            _exit(__LINE__ % 200 + 1);                                                             \
    } while (0)

enum { FORKS = 30, CHILD_SECONDS = 20 };

static void bounce_step(void *argument)
{
    struct area *area = argument;
    int64_t page = (int64_t)library()->page_size;

    CHECK(pm_move(library(), area_at(area, 1), area_at(area, 0), (uint64_t)page, 0, 1) == page);
    CHECK(area_look(area, 1) == 7);
    CHECK(pm_move(library(), area_at(area, 0), area_at(area, 1), (uint64_t)page, 0, 1) == page);
}

/* Allocates nothing: another thread may have held the allocator's locks when it was born. */
static void in_the_child(char *inherited)
{
    struct pm_process *process;
    size_t page;
    char *own;

    alarm(CHILD_SECONDS);
    CHILD_CHECK(!pm_process_get(&process));
    page = process->page_size;
    CHILD_CHECK(process->uffd >= 0 && process->scratch);
    own = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHILD_CHECK(own != MAP_FAILED);
    page_register(own, 2 * page);
    memset(own, 3, page);
    CHILD_CHECK(pm_move(process, (uintptr_t)(own + page), (uintptr_t)own, page, 0, 1) ==
                (int64_t)page);
    CHILD_CHECK(own[page] == 3 && own[2 * page - 1] == 3 && !page_there(own));
    /* The destination that the parent registered is not registered here. */
    CHILD_CHECK(pm_move(process, (uintptr_t)(inherited + page), (uintptr_t)inherited, page, 0, 1) <
                0);
    page_register(inherited, 2 * page);
    CHILD_CHECK(pm_move(process, (uintptr_t)(inherited + page), (uintptr_t)inherited, page, 0, 1) ==
                -EBUSY);
    inherited[0] = 9;
    CHILD_CHECK(pm_move(process, (uintptr_t)(inherited + page), (uintptr_t)inherited, page, 0, 1) ==
                (int64_t)page);
    CHILD_CHECK(inherited[page] == 9 && inherited[page + 1] == 5);
    _exit(0);
}

void case_forks(uint64_t seed)
{
    size_t page = library()->page_size;
    struct area area = area_make(2, SMALL_PAGES);
    struct sibling mover;
    char *inherited =
        mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t defects = library()->defects;

    (void)seed;
    CHECK(inherited != MAP_FAILED);
    CHECK(!madvise(inherited, 2 * page, MADV_NOHUGEPAGE));
    memset(inherited, 5, page);
    page_register(inherited, 2 * page);
    area_fill(&area, 0, 7);
    sibling_start(&mover, bounce_step, &area);
    for (int i = 0; i < FORKS; i++) {
        int status, uffd = library()->uffd;
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child)
            in_the_child(inherited);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "child: status %#x", status);
        CHECK(library()->uffd == uffd && library()->defects == defects);
        CHECK(inherited[0] == 5 && inherited[page - 1] == 5 && !page_there(inherited + page));
    }
    CHECK(sibling_stop(&mover) > 0);
    area_check(&area);
    CHECK(!munmap(inherited, 2 * page));
    area_free(&area);
}

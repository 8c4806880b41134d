#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "descriptors.h"
#include "guard.h"
#include "uapi.h"

enum { FRESH = 0, OPENING = 1, READY = 2 };

/* The state lives in memory that a fork wipes: a child, however it was made, finds it fresh and
 * opens its own. An inherited userfaultfd would act on the parent's memory. */
static struct pm_process *state;

/* Copied by a fork, unlike the state: tells the child which descriptors to close, if they are still
 * the library's. The program may have closed a number and opened a file of its own under it. */
static struct {
    int fd;
    struct pm_identity identity;
} inherited[3] = {{-1, {0, PM_NO_FILE}}, {-1, {0, PM_NO_FILE}}, {-1, {0, PM_NO_FILE}}};

void *pm_wiped_memory(size_t length)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    if (madvise(memory, length, MADV_WIPEONFORK)) {
        int error = errno;
        munmap(memory, length);
        errno = error;
        return NULL;
    }
    return memory;
}

static int note_inherited(int which, int fd)
{
    inherited[which].fd = fd;
    inherited[which].identity = pm_identify(fd);
    return fd;
}

/* Before 5.12 all anonymous inodes are one: what is known of the userfaultfd is then only its kind.
 */
static int is_ours(int which)
{
    char link[32] = "", path[32];

    if (!pm_is_still(inherited[which].fd, inherited[which].identity))
        return 0;
    if (which > 0)
        return 1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", inherited[which].fd);
    return readlink(path, link, sizeof link - 1) < 0 || !strcmp(link, "anon_inode:[userfaultfd]");
}

static void close_inherited(void)
{
    for (int i = 0; i < 3; i++) {
        if (inherited[i].fd >= 0 && is_ours(i))
            close(inherited[i].fd);
        inherited[i].fd = -1;
    }
}

static int all_ours(void)
{
    for (int i = 0; i < 3; i++)
        if (inherited[i].fd >= 0 && !is_ours(i))
            return 0;
    return 1;
}

static uint64_t read_huge_page_size(void)
{
    unsigned long long bytes = 0;
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "re");

    if (file) {
        if (fscanf(file, "%llu", &bytes) != 1)
            bytes = 0;
        fclose(file);
    }
    return bytes;
}

static int open_userfaultfd(void)
{
    /* No fault is ever delivered to it, so user mode is enough, and that needs no privilege. */
    struct pm_uffdio_api api = {.api = PM_UFFD_API, .features = UINT64_C(1) << 16};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | PM_UFFD_USER_MODE_ONLY);

    if (fd < 0) {
        int error = errno;
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (device < 0)
            return -error;
        fd = ioctl(device, PM_USERFAULTFD_IOC_NEW, O_CLOEXEC | PM_UFFD_USER_MODE_ONLY);
        close(device);
        if (fd < 0)
            return -error;
    }
    if (ioctl(fd, PM_UFFDIO_API, &api)) {
        close(fd);
        return -ENOSYS; /* the kernel does not know UFFD_FEATURE_MOVE */
    }
    return pm_keep(fd);
}

/* Sources for UFFDIO_MOVE that have nothing to move, so that it only looks at the destination: a
 * page that is a hole but has a page table, and the room of a huge page that has not even that,
 * with something beside it so that the level above exists. Neither is ever touched. */
static void make_scratch(struct pm_process *process)
{
    uint64_t page = process->page_size, block = page * (page / sizeof(uint64_t));
    char *memory = mmap(NULL, 3 * block, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t tableless;

    if (memory == MAP_FAILED)
        return;
    madvise(memory, 3 * block, MADV_NOHUGEPAGE);
    madvise(memory, 3 * block, MADV_DONTFORK);
    tableless = ((uint64_t)(uintptr_t)memory + block - 1) & ~(block - 1);
    process->scratch = tableless + block;
    *(char *)(uintptr_t)(process->scratch + page) = 1;
    if (process->huge_page_size == block)
        process->tableless = tableless;
}

/* A file of /proc/self that may be missing: -1, unless it is only that descriptors ran out. */
static int open_proc(const char *path, int *fd)
{
    int found = pm_keep(open(path, O_RDONLY | O_CLOEXEC));

    *fd = found < 0 ? -1 : found;
    return found == -EMFILE || found == -ENFILE || found == -ENOMEM ? found : 0;
}

static void prepare(struct pm_process *process)
{
    process->defects = pm_running_defects();
    process->huge_page_size = read_huge_page_size();
    for (int i = 0; i < PM_STRIPES; i++)
        pthread_mutex_init(&process->stripes[i], NULL);
    process->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    make_scratch(process);
}

static int open_all(struct pm_process *process)
{
    int error;

    /* Once in every process, but not again when descriptors are reopened: threads hold stripes. */
    if (!process->page_size)
        prepare(process);
    if (process->defects & PM_DEFECT_REFUSE)
        return -ENOSYS;
    process->uffd = note_inherited(0, open_userfaultfd());
    if (process->uffd < 0)
        return process->uffd;
    error = open_proc("/proc/self/pagemap", &process->pagemap);
    note_inherited(1, process->pagemap);
    process->maps = -1;
    if (!error)
        error = open_proc("/proc/self/maps", &process->maps);
    note_inherited(2, process->maps);
    if (error)
        close_inherited();
    return error;
}

int pm_process_start(void)
{
    struct pm_process *memory;

    if (state)
        return 0;
    memory = pm_wiped_memory(sizeof *memory);
    if (!memory)
        return -errno;
    if (pthread_atfork(NULL, NULL, close_inherited)) {
        munmap(memory, sizeof *memory);
        return -ENOMEM;
    }
    state = memory;
    return 0;
}

int pm_process_get(struct pm_process **process)
{
    struct pm_process *mine;
    uint32_t expected = FRESH;
    int error;

    if (__builtin_expect(!state, 0)) {
        error = pm_process_start();
        if (error)
            return error;
    }
    *process = mine = state;
    if (__builtin_expect(__atomic_load_n(&mine->phase, __ATOMIC_ACQUIRE) == READY, 1))
        return 0;
    while (!__atomic_compare_exchange_n(&mine->phase, &expected, OPENING, 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE)) {
        if (expected == READY)
            return 0;
        expected = FRESH;
        sched_yield();
    }
    error = open_all(mine);
    __atomic_store_n(&mine->phase, error ? FRESH : READY, __ATOMIC_RELEASE);
    return error;
}

void pm_process_reopen(void)
{
    uint32_t expected = READY;

    if (!__atomic_compare_exchange_n(&state->phase, &expected, OPENING, 0, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        return;
    if (all_ours()) {
        __atomic_store_n(&state->phase, READY, __ATOMIC_RELEASE);
        return;
    }
    close_inherited();
    __atomic_store_n(&state->phase, FRESH, __ATOMIC_RELEASE);
}

int pm_process_set_defects(uint32_t defects)
{
    struct pm_process *process;
    int error = pm_process_get(&process);

    if (!error)
        process->defects = defects;
    return error;
}

uint64_t pm_stripes_of(uint64_t start, uint64_t length)
{
    uint64_t first = start >> PM_STRIPE_SHIFT, last = (start + length - 1) >> PM_STRIPE_SHIFT;
    uint64_t stripes = 0;

    if (last - first >= PM_STRIPES)
        return ~UINT64_C(0);
    for (uint64_t block = first; block <= last; block++)
        stripes |= UINT64_C(1) << (block % PM_STRIPES);
    return stripes;
}

int pm_stripes_lock(struct pm_process *process, uint64_t stripes, int wait)
{
    uint64_t held = 0;

    /* Always in ascending order, so two movers cannot wait for each other. */
    for (uint64_t rest = stripes; rest; rest &= rest - 1) {
        int i = __builtin_ctzll(rest);
        if (wait) {
            pthread_mutex_lock(&process->stripes[i]);
        } else if (pthread_mutex_trylock(&process->stripes[i])) {
            pm_stripes_unlock(process, held);
            return -EBUSY;
        }
        held |= UINT64_C(1) << i;
    }
    return 0;
}

void pm_stripes_unlock(struct pm_process *process, uint64_t stripes)
{
    for (uint64_t rest = stripes; rest; rest &= rest - 1)
        pthread_mutex_unlock(&process->stripes[__builtin_ctzll(rest)]);
}

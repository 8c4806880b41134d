#define _GNU_SOURCE
#include "pager/mechanisms/mail.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "uapi.h"

enum { COPY_DONTWAKE = 1, COPY_WP = 2, GENERATION = 16 };

/* ns between tries to wake a thread that may be about to sleep. */
enum { PAUSE = 100000 };

uint64_t pg_mail_bytes(void)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), bytes = PG_LANES * sizeof(struct pg_letter);

    return (bytes + page - 1) / page * page;
}

static long futex(uint32_t *word, int operation, uint32_t value)
{
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

uint32_t pg_mail_ask(struct pg_letter *letter, const struct pg_errand *request, unsigned generation,
                     uint32_t last, int quietly)
{
    uint32_t number = (uint32_t)generation << GENERATION | ((last + 2) & 0xfffe);

    letter->request = *request;
    __atomic_store_n(&letter->answer, quietly ? number : 0, __ATOMIC_RELAXED);
    __atomic_store_n(&letter->number, number, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&letter->asleep, __ATOMIC_SEQ_CST))
        futex(&letter->number, FUTEX_WAKE, 1);
    return number;
}

int pg_mail_answered(const struct pg_letter *letter, uint32_t number)
{
    if (__atomic_load_n(&letter->answer, __ATOMIC_ACQUIRE) != (number | 1))
        return 0;
    return __atomic_load_n(&letter->woken, __ATOMIC_ACQUIRE) == number ? PG_WOKEN : PG_PLACED;
}

int pg_mail_taken(const struct pg_letter *letter, uint32_t number)
{
    return __atomic_load_n(&letter->taken, __ATOMIC_ACQUIRE) == number;
}

/* Not 0, whatever the generation is. */
static uint32_t cut_off_in(unsigned generation)
{
    return generation << 1 | 1;
}

int pg_mail_is_cut_off(const struct pg_letter *letters, unsigned generation)
{
    return __atomic_load_n(&letters->cut_off, __ATOMIC_ACQUIRE) == cut_off_in(generation);
}

int pg_mail_listen(struct pg_letter *letter, uint32_t number)
{
    uint32_t unanswered = number;

    return !__atomic_compare_exchange_n(&letter->answer, &unanswered, 0, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST) &&
           unanswered == (number | 1);
}

void pg_desk_open(struct pg_desk *desk, void *letters, unsigned generation, int region)
{
    *desk = (struct pg_desk){
        .letters = letters, .generation = generation, .region = region, .process = getpid()};
    pthread_mutex_init(&desk->gate, NULL);
    for (uint32_t lane = 0; lane < PG_LANES; lane++)
        desk->seen[lane] = __atomic_load_n(&desk->letters[lane].number, __ATOMIC_ACQUIRE);
}

/* Sleep while the number is the one that was seen. */
static void sleep_on(struct pg_letter *letter, uint32_t seen)
{
    __atomic_store_n(&letter->asleep, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&letter->number, __ATOMIC_SEQ_CST) == seen)
        futex(&letter->number, FUTEX_WAIT, seen);
    __atomic_store_n(&letter->asleep, 0, __ATOMIC_RELAXED);
}

int pg_desk_wait(struct pg_desk *desk, uint32_t lane)
{
    struct pg_letter *letter = &desk->letters[lane];
    int error = 0;

    __atomic_add_fetch(&desk->waiting, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        uint32_t number = __atomic_load_n(&letter->number, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&desk->ended, __ATOMIC_SEQ_CST)) {
            error = -ESHUTDOWN;
            break;
        }
        if (number == desk->seen[lane]) {
            sleep_on(letter, number);
            continue;
        }
        desk->seen[lane] = number;
        if (number >> GENERATION == (desk->generation & 0xffff)) {
            __atomic_store_n(&letter->taken, number, __ATOMIC_RELEASE);
            break;
        }
    }
    __atomic_sub_fetch(&desk->waiting, 1, __ATOMIC_RELEASE);
    return error;
}

static int copy(int region, const struct pg_errand *request, uint64_t source)
{
    uint64_t done = 0;

    while (done < request->length) {
        struct pm_uffdio_copy arg = {.dst = request->address + done,
                                     .src = source + done,
                                     .len = request->length - done,
                                     .mode = COPY_DONTWAKE | (request->protect ? COPY_WP : 0)};
        if (!ioctl(region, PM_UFFDIO_COPY, &arg))
            return 0;
        if (arg.copy <= 0)
            return -errno;
        done += (uint64_t)arg.copy;
    }
    return 0;
}

/* It is said before anybody is woken: a thread that goes on finds the lane free again for its next
 * fault. One that was not woken, for this process ended in between, is woken by the pager. */
int pg_desk_place(struct pg_desk *desk, uint32_t lane, uint64_t source)
{
    struct pg_letter *letter = &desk->letters[lane];
    struct pm_uffdio_range range = {letter->request.address, letter->request.length};
    uint32_t number = desk->seen[lane], unanswered = number;
    int error, quietly = 0;

    if (getpid() != desk->process)
        return -ECHILD;
    pthread_mutex_lock(&desk->gate);
    error = desk->gone ? -ESHUTDOWN : copy(desk->region, &letter->request, source);
    if (!error) {
        quietly = __atomic_compare_exchange_n(&letter->answer, &unanswered, number | 1, 0,
                                              __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        if (!ioctl(desk->region, PM_UFFDIO_WAKE, &range))
            __atomic_store_n(&letter->woken, number, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&desk->gate);
    return error ? error : !quietly;
}

void pg_desk_end(struct pg_desk *desk)
{
    struct timespec pause = {0, PAUSE};

    __atomic_store_n(&desk->ended, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&desk->waiting, __ATOMIC_SEQ_CST)) {
        for (uint32_t lane = 0; lane < PG_LANES; lane++)
            futex(&desk->letters[lane].number, FUTEX_WAKE, INT_MAX);
        nanosleep(&pause, NULL);
    }
}

void pg_desk_note_cut_off(struct pg_desk *desk)
{
    __atomic_store_n(&desk->letters->cut_off, cut_off_in(desk->generation), __ATOMIC_RELEASE);
}

void pg_desk_leave(struct pg_desk *desk)
{
    pthread_mutex_lock(&desk->gate);
    desk->gone = 1;
    pthread_mutex_unlock(&desk->gate);
}

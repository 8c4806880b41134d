/* The letters by which a pager asks a helper, with both sides in one process.
 *
 *     mail_alone CASE
 *
 * Ends with 0 if what the case expects is so; else a message says what was not. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/mechanisms/mail.h"
#include "uapi.h"

#define EXPECT(what)                                                                               \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                              \
            fflush(stdout);                                                                        \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

enum { PAGE = 4096, LANE = 3, GENERATION = 7, ROUNDS = 4000 };

static struct pg_letter *letters;
static struct pg_letter *letter;
static struct pg_desk desk;
static int region;
static char *memory;
static char source[PAGE] __attribute__((aligned(PAGE)));

static void start(void)
{
    struct pm_uffdio_api api = {.api = PM_UFFD_API};
    struct pm_uffdio_register arg = {.mode = PM_REGISTER_MODE_MISSING | PM_REGISTER_MODE_WP};

    letters =
        mmap(NULL, pg_mail_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory = mmap(NULL, (size_t)ROUNDS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                  -1, 0);
    EXPECT(letters != MAP_FAILED && memory != MAP_FAILED);
    region = (int)syscall(SYS_userfaultfd, O_CLOEXEC | PM_UFFD_USER_MODE_ONLY);
    EXPECT(region >= 0);
    EXPECT(!ioctl(region, PM_UFFDIO_API, &api));
    arg.range = (struct pm_uffdio_range){(uintptr_t)memory, (uint64_t)ROUNDS * PAGE};
    EXPECT(!ioctl(region, PM_UFFDIO_REGISTER, &arg));
    letter = &letters[LANE];
    memset(source, 'x', sizeof source);
    pg_desk_open(&desk, letters, GENERATION, region);
}

static struct pg_errand errand(int block)
{
    return (struct pg_errand){0, 1, (uint64_t)block * PAGE, PAGE,
                              (uintptr_t)memory + (uint64_t)block * PAGE};
}

static uint32_t ask(int block, unsigned generation, uint32_t last, int quietly)
{
    struct pg_errand wanted = errand(block);

    return pg_mail_ask(letter, &wanted, generation, last, quietly);
}

static int place(void)
{
    return pg_desk_place(&desk, LANE, (uintptr_t)source);
}

static void answered(void)
{
    uint32_t number = ask(1, GENERATION, 0, 1);

    EXPECT(!pg_mail_taken(letter, number));
    EXPECT(!pg_desk_wait(&desk, LANE));
    EXPECT(pg_mail_taken(letter, number));
    EXPECT(letter->request.offset == PAGE && letter->request.length == PAGE);
    EXPECT(!pg_mail_answered(letter, number));
    EXPECT(place() == 0);
    EXPECT(pg_mail_answered(letter, number) == PG_WOKEN);
    EXPECT(memory[PAGE] == 'x');
    EXPECT(pg_mail_listen(letter, number) == 1);
    /* The next is none of it. */
    number = ask(2, GENERATION, number, 1);
    EXPECT(!pg_mail_answered(letter, number));
    EXPECT(!pg_desk_wait(&desk, LANE));
    EXPECT(place() == 0);
    EXPECT(pg_mail_answered(letter, number) == PG_WOKEN);
}

static void aloud(void)
{
    uint32_t number = ask(1, GENERATION, 0, 0);

    EXPECT(!pg_desk_wait(&desk, LANE));
    EXPECT(place() == 1);
    EXPECT(!pg_mail_answered(letter, number));
    number = ask(2, GENERATION, number, 1);
    EXPECT(!pg_desk_wait(&desk, LANE));
    EXPECT(pg_mail_listen(letter, number) == 0);
    EXPECT(place() == 1);
    EXPECT(!pg_mail_answered(letter, number));
}

/* A block that is there already, and a region that has been left, are failures. */
static void refused(void)
{
    uint32_t number = ask(1, GENERATION, 0, 1);

    EXPECT(!pg_desk_wait(&desk, LANE));
    EXPECT(place() == 0);
    EXPECT(place() == -EEXIST);
    number = ask(2, GENERATION, number, 1);
    EXPECT(!pg_desk_wait(&desk, LANE));
    pg_desk_leave(&desk);
    EXPECT(place() == -ESHUTDOWN);
    EXPECT(!pg_mail_answered(letter, number));
    /* Nobody was woken, so it is not said either. */
    EXPECT(letter->woken != number);
}

static void *take_one(void *unused)
{
    (void)unused;
    EXPECT(!pg_desk_wait(&desk, LANE));
    EXPECT(letter->request.offset == 5 * PAGE);
    return NULL;
}

/* Nobody gets what was asked before, or of a helper that has ended. */
static void others(void)
{
    uint32_t number = ask(1, GENERATION - 1, 0, 1);
    pthread_t taker;

    pg_desk_open(&desk, letters, GENERATION, region);
    EXPECT(!pthread_create(&taker, NULL, take_one, NULL));
    number = ask(2, GENERATION - 1, number, 1);
    usleep(1000);
    number = ask(3, GENERATION - 1, number, 1);
    usleep(1000);
    EXPECT(!pg_mail_taken(letter, number));
    number = ask(5, GENERATION, number, 1);
    EXPECT(!pthread_join(taker, NULL));
}

static void *wait_on(void *lane)
{
    return (void *)(intptr_t)pg_desk_wait(&desk, (uint32_t)(intptr_t)lane);
}

static void ended(void)
{
    pthread_t waiters[PG_LANES];
    void *status;

    for (intptr_t lane = 0; lane < PG_LANES; lane++)
        EXPECT(!pthread_create(&waiters[lane], NULL, wait_on, (void *)lane));
    pg_desk_end(&desk);
    for (int lane = 0; lane < PG_LANES; lane++) {
        EXPECT(!pthread_join(waiters[lane], &status));
        EXPECT((intptr_t)status == -ESHUTDOWN);
    }
    ask(1, GENERATION, 0, 1);
    EXPECT(pg_desk_wait(&desk, LANE) == -ESHUTDOWN);
}

/* What a helper says by the socket. */
static int said[2];

static void *help(void *unused)
{
    (void)unused;
    while (!pg_desk_wait(&desk, LANE)) {
        int status = place();
        EXPECT(status >= 0);
        if (status)
            EXPECT(write(said[1], "x", 1) == 1);
    }
    return NULL;
}

static void *touch(void *block)
{
    EXPECT(*(volatile char *)block == 'x');
    return NULL;
}

/* Each is answered once, in the letter or by the socket, however listening and placing meet; and
 * whoever waits for the block goes on. */
static void once(void)
{
    uint32_t number = 0;
    int by_letter = 0, by_socket = 0;
    pthread_t helper, toucher;
    char byte;

    EXPECT(!pipe(said));
    EXPECT(!pthread_create(&helper, NULL, help, NULL));
    for (int round = 0; round < ROUNDS; round++) {
        struct pm_uffd_msg message;
        int in_letter;
        EXPECT(!pthread_create(&toucher, NULL, touch, memory + (size_t)round * PAGE));
        EXPECT(read(region, &message, sizeof message) == sizeof message);
        number = ask(round, GENERATION, number, 1);
        for (int pause = 0; pause < round % 64 * 64; pause++)
            __asm__ volatile("");
        in_letter = pg_mail_listen(letter, number);
        if (!in_letter)
            EXPECT(read(said[0], &byte, 1) == 1);
        EXPECT(!pg_mail_answered(letter, number) == !in_letter);
        by_letter += in_letter;
        by_socket += !in_letter;
        EXPECT(!pthread_join(toucher, NULL));
    }
    pg_desk_end(&desk);
    EXPECT(!pthread_join(helper, NULL));
    close(said[1]);
    EXPECT(read(said[0], &byte, 1) == 0);
    EXPECT(by_letter + by_socket == ROUNDS);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {{"answered", answered}, {"aloud", aloud}, {"refused", refused},
                 {"others", others},     {"ended", ended}, {"once", once}};

    EXPECT(argc == 2);
    start();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (!strcmp(argv[1], cases[i].name)) {
            cases[i].run();
            return 0;
        }
    printf("no such case: %s\n", argv[1]);
    return 2;
}

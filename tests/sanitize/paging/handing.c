#define _GNU_SOURCE
#include "handing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "pager/giving.h"
#include "pager/mechanisms/taking.h"
#include "pager/mechanisms/wire.h"
#include "pager/pager.h"
#include "paging.h"

enum { UNIT = 65536, UNITS = 96, WORDS = UNITS * UNIT / 8 - 100, LINES = 512, WRITERS = 2 };

#define SECOND UINT64_C(1000000000)

/* The pager's threads have tables of their own, where the same number is another file: the
 * sanitizer for threads does not know, and takes that for a race. So the numbers here are others.
 */
static void leave_low_numbers(void)
{
    static int fd;

    while (fd >= 0 && fd < 500)
        fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
}

struct side {
    struct pg_giver *giver;
    int listener;
    atomic_int stop, count;
    atomic_int lines[LINES];
    pthread_t threads[LINES];
};

struct line {
    struct side *side;
    int fd, number;
};

static int say(int fd, const void *bytes, size_t length)
{
    struct pg_wire wire = {.fd = fd, .patience = 20 * SECOND, .deadline = UINT64_MAX};

    return pg_wire_send(&wire, bytes, length);
}

static int hear(int fd, void *bytes, size_t length)
{
    struct pg_wire wire = {.fd = fd, .patience = 20 * SECOND, .deadline = UINT64_MAX};

    return pg_wire_receive(&wire, bytes, length);
}

/* As stores/wire.py has it, without a secret. */
static int greet(int fd)
{
    char hello[52] = "pagemove giving\n", want[88], reply[40] = {0};
    uint32_t length;

    hello[16] = PG_WIRE_VERSION;
    if (say(fd, hello, sizeof hello) || hear(fd, want, sizeof want))
        return -1;
    memcpy(&length, want + 84, sizeof length);
    return length > sizeof want || hear(fd, want, length) || say(fd, reply, sizeof reply);
}

static int say_order(int fd)
{
    struct pg_wire_answer head = {.kind = PG_ORDER, .first = 2, .length = 32};
    uint64_t runs[4] = {UNITS / 2, UNITS, 0, UNITS / 2};

    return say(fd, &head, sizeof head) || say(fd, runs, sizeof runs);
}

static void *serve(void *argument)
{
    struct line line = *(struct line *)argument;
    int file = -1, need = 1;

    free(argument);
    if (greet(line.fd))
        need = -1;
    while (need > 0) {
        need = pg_giver_serve(line.side->giver, line.fd, &file, 20 * SECOND);
        if (need == PG_NEED_ORDER && say_order(line.fd))
            need = -1;
    }
    if (file >= 0)
        close(file);
    shutdown(line.fd, SHUT_RDWR);
    return NULL;
}

static void *let_in(void *argument)
{
    struct side *side = argument;

    while (!atomic_load(&side->stop)) {
        struct line *line = malloc(sizeof *line);
        int number = atomic_load(&side->count);
        CHECK(line && number < LINES);
        *line = (struct line){side, accept(side->listener, NULL, NULL), number};
        if (line->fd < 0) {
            free(line);
            break;
        }
        atomic_store(&side->lines[number], line->fd);
        CHECK(!pthread_create(&side->threads[number], NULL, serve, line));
        atomic_store(&side->count, number + 1);
    }
    return NULL;
}

static void *cut(void *argument)
{
    struct side *side = argument;
    unsigned turn = 0;

    while (!atomic_load(&side->stop) && turn < 40) {
        int count = atomic_load(&side->count);
        usleep(3000);
        if (count)
            shutdown(atomic_load(&side->lines[(unsigned)count - 1 - turn++ * 7 % (unsigned)count]),
                     SHUT_RDWR);
    }
    return NULL;
}

struct writer {
    struct pg_taken *taken;
    uint64_t seed;
    unsigned number;
    uint64_t added[WORDS / 512 + 1];
};

static uint64_t word_of(uint64_t place)
{
    return place * UINT64_C(0x9E3779B97F4A7C15) | 1;
}

/* Read or write some of it, however often connections are lost. */
static void move(struct pg_taken *taken, int reads, uint64_t place, uint64_t *words, size_t count)
{
    struct iovec vector = {words, 8 * count};
    char text[PG_TEXT];
    int error, tries = 0;

    do
        error = reads ? pg_taken_read(taken, 8 * place, &vector, 1, 8 * count, 0, text)
                      : pg_taken_write(taken, 8 * place, &vector, 1, 8 * count, text);
    while (error && ++tries < 100);
    CHECK(!error);
}

/* Of every 512th word, which of them are each writer's. */
static void *count_up(void *argument)
{
    struct writer *writer = argument;
    uint64_t seed = writer->seed + writer->number;

    for (int turn = 0; turn < 300; turn++) {
        uint64_t mine, place, word;
        seed = seed * UINT64_C(6364136223846793005) + 1;
        mine = (seed >> 33) % (WORDS / 512 / WRITERS) * WRITERS + writer->number;
        place = mine * 512;
        move(writer->taken, 1, place, &word, 1);
        CHECK(word == word_of(place) + writer->added[mine]);
        word = word_of(place) + ++writer->added[mine];
        move(writer->taken, 0, place, &word, 1);
    }
    return NULL;
}

static struct pg_region *make_source(uint64_t block_size, int *file)
{
    char path[] = "/tmp/pagemove-XXXXXX", text[PG_TEXT];
    struct pg_config config = {.fd = mkostemp(path, O_CLOEXEC),
                               .nbytes = 8 * WORDS,
                               .label = path,
                               .mode = PG_READ,
                               .block_size = block_size,
                               .limit = 16 * block_size,
                               .timeout_ns = 60 * SECOND,
                               .moves = 1,
                               .spill_directory = "/tmp"};
    uint64_t *words = malloc(config.nbytes);
    struct pg_region *region;

    CHECK(words && config.fd >= 0 && !unlink(path));
    for (uint64_t place = 0; place < WORDS; place++)
        words[place] = word_of(place);
    CHECK(pwrite(config.fd, words, config.nbytes, 0) == (ssize_t)config.nbytes);
    free(words);
    CHECK(pg_open(&config, &region, text) == 0);
    *file = config.fd;
    return region;
}

static struct pg_taken *take(const struct sockaddr_un *address)
{
    struct pg_taking taking = {.address = address,
                               .address_length = sizeof *address,
                               .want = {"{}", 2},
                               .url = "pagemove+unix:",
                               .unit = UNIT,
                               .patience_ns = 20 * SECOND,
                               .late_ns = SECOND / 20};
    struct pg_taken *taken;
    char text[PG_TEXT];

    CHECK(pg_taken_open(&taking, 8 * WORDS, &taken, text) == 0);
    return taken;
}

static void check_contents(struct pg_taken *taken, const struct writer *writers)
{
    static uint64_t words[4096];

    for (uint64_t first = 0, count; first < WORDS; first += count) {
        count = WORDS - first < 4096 ? WORDS - first : 4096;
        move(taken, 1, first, words, count);
        for (uint64_t place = first; place < first + count; place++) {
            uint64_t mine = place / 512, added = 0;
            if (place % 512 == 0)
                added = writers[mine % WRITERS].added[mine];
            CHECK(words[place - first] == word_of(place) + added);
        }
    }
}

void hand_over(uint64_t seed, uint64_t block_size, int cuts)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int file;
    struct pg_region *source;
    struct pg_taken *taken;
    char text[PG_TEXT];
    struct side *side = calloc(1, sizeof *side);
    struct writer *writers = calloc(WRITERS, sizeof *writers);
    pthread_t threads[WRITERS], door, cutter;
    struct pg_counters counters;

    CHECK(side && writers);
    leave_low_numbers();
    source = make_source(block_size, &file);
    side->giver = pg_giver_new(source, pg_address(source), 8 * WORDS, UNIT);
    CHECK(side->giver);
    pg_counters(source, &counters);
    pg_giver_switched(side->giver, counters.dirty, counters.bytes_written);
    side->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* Without a name in the file system. */
    snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "pagemove-%d-%u", (int)getpid(),
             (unsigned)seed);
    CHECK(!bind(side->listener, (struct sockaddr *)&address, sizeof address));
    CHECK(!listen(side->listener, 16));
    CHECK(!pthread_create(&door, NULL, let_in, side));
    taken = take(&address);
    if (cuts)
        CHECK(!pthread_create(&cutter, NULL, cut, side));
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i].taken = taken;
        writers[i].seed = seed;
        writers[i].number = i;
        CHECK(!pthread_create(&threads[i], NULL, count_up, &writers[i]));
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    while (pg_giver_missing(side->giver))
        usleep(1000);
    check_contents(taken, writers);
    atomic_store(&side->stop, 1);
    shutdown(side->listener, SHUT_RDWR);
    pthread_join(door, NULL);
    if (cuts)
        pthread_join(cutter, NULL);
    CHECK(pg_taken_sync(taken, text) == 0);
    pg_taken_close(taken);
    for (int i = 0; i < atomic_load(&side->count); i++) {
        shutdown(atomic_load(&side->lines[i]), SHUT_RDWR);
        pthread_join(side->threads[i], NULL);
        close(atomic_load(&side->lines[i]));
    }
    close(side->listener);
    pg_giver_free(side->giver);
    pg_close(source);
    close(file);
    free(writers);
    free(side);
}

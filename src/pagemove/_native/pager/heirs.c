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
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/estate.h"
#include "pager/inherited.h"
#include "pager/mechanisms/threads.h"
#include "pager/mechanisms/voice.h"

static struct pg_estate *estate;

static struct pg_estate *new_estate(void)
{
    struct pg_estate *made = calloc(1, sizeof *made);

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
    heir->estate = estate;
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
    if (region->base && region->opening && region->opening->config.again &&
        !region->opening->config.compression)
        add(origin, region->opening, region->stone, region->base, region->length);
}

void pg_heirs_forked(void)
{
    struct pg_estate *parents = estate;

    estate = NULL;
    for (struct pg_heir *heir = parents ? parents->heirs : NULL; heir; heir = heir->next)
        if (heir->state != PG_HEIR_OPEN) {
            const struct pg_config *config = &heir->opening->config;

            pg_mark_grave(heir->stone, heir->base, heir->length, config->label, config->mode,
                          pg_remedy_of(config), 0);
            add(heir->origin, heir->opening, heir->stone, heir->base, heir->length);
        }
}

struct pg_heir *pg_heir_of(const struct pg_region *origin, int early)
{
    struct pg_estate *mine = estate;
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

int pg_heirs_start(void (*there)(uint64_t start, uint64_t end))
{
    struct pg_estate *mine = estate;
    pthread_t thread;
    int error;

    if (!mine || mine->ready)
        return mine ? mine->error : 0;
    /* That thread's descriptor 2 is not the program's. */
    error = pg_voice_enter();
    if (!error)
        error = pg_start_thread(&thread, "pagemove-heirs", pg_wait_for_heirs, mine);
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
            pg_fail_heir(heir, error);
        else if (heir->state != PG_HEIR_FAILED)
            there(heir->base, heir->base + heir->length);
    return error;
}

int pg_heir_waits(const struct pg_heir *heir)
{
    struct pg_estate *mine = estate;
    int waits;

    pthread_mutex_lock(&mine->lock);
    waits = heir->state == PG_HEIR_WAITING;
    pthread_mutex_unlock(&mine->lock);
    return waits;
}

int pg_heir_region(struct pg_heir *heir, struct pg_region **region, char text[PG_TEXT])
{
    struct pg_estate *mine = estate;
    int error;

    pthread_mutex_lock(&mine->lock);
    if (heir->state == PG_HEIR_WAITING) {
        pthread_mutex_unlock(&mine->lock);
        pg_ring_for(mine, heir, 0);
        pthread_mutex_lock(&mine->lock);
    }
    while (heir->state == PG_HEIR_OPENING)
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
    struct pg_estate *mine = estate;
    struct pg_region *region;

    pthread_mutex_lock(&mine->lock);
    if (heir->state == PG_HEIR_WAITING) {
        pthread_mutex_unlock(&mine->lock);
        pg_ring_for(mine, heir, 1);
        pthread_mutex_lock(&mine->lock);
    }
    while (heir->state == PG_HEIR_OPENING)
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

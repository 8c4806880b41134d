/* The thread that answers the faults of all regions over files, and keeps their time. It waits for
 * nothing else: what may have to wait is the pool's. */
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "pager/engine/faults.h"
#include "pager/engine/work.h"
#include "pager/shared.h"
#include "uapi.h"

enum { EVENTS = 16, WAKEUP = PG_KINDS, WATCHED, RING, POLLED };

/* ns between looks at what is armed, and whether others are still in I/O. */
#define TICKING UINT64_C(1000000000)

void pg_wake_reactor(struct pg_engine *engine, int always)
{
    uint64_t one = 1;

    if ((!engine->asleep && !always) || pg_inside != engine)
        return;
    engine->asleep = 0;
    if (write(engine->wakeup, &one, sizeof one) < 0)
        return; /* it is full: then the reactor is awake */
}

void pg_arm(struct pg_region *region, uint64_t when)
{
    struct pg_engine *engine = region->engine;

    pthread_mutex_lock(&engine->lock);
    if (!region->share.armed) {
        region->share.armed = 1;
        region->share.armed_next = NULL;
        *engine->armed_last = region;
        engine->armed_last = &region->share.armed_next;
        engine->armed_count++;
    }
    if (when < engine->due)
        engine->due = when;
    pg_wake_reactor(engine, 0);
    pthread_mutex_unlock(&engine->lock);
}

/* Until when to wait for events. */
static uint64_t next_due(struct pg_engine *engine)
{
    uint64_t due = UINT64_MAX;

    pthread_mutex_lock(&engine->lock);
    /* There may have been no thread when one was wanted. */
    pg_pool_spare(engine);
    engine->asleep = !engine->armed_count && !engine->flights.ring.under_way && engine->threads &&
                     engine->threads == engine->idle;
    if (!engine->asleep) {
        due = pg_now() + TICKING;
        due = engine->due < due ? engine->due : due;
    }
    pthread_mutex_unlock(&engine->lock);
    return due;
}

static struct pg_region *next_armed(struct pg_engine *engine)
{
    struct pg_region *region;

    pthread_mutex_lock(&engine->lock);
    region = engine->armed;
    if (region) {
        engine->armed = region->share.armed_next;
        if (!engine->armed)
            engine->armed_last = &engine->armed;
        engine->armed_count--;
        region->share.armed = 0;
    }
    pthread_mutex_unlock(&engine->lock);
    return region;
}

/* Give up what is late, in all regions where something may be. */
static void keep_time(struct pg_engine *engine)
{
    uint32_t count;
    uint64_t due;

    pthread_mutex_lock(&engine->places_lock);
    pthread_mutex_lock(&engine->lock);
    count = engine->armed_count;
    engine->due = UINT64_MAX;
    pthread_mutex_unlock(&engine->lock);
    while (count--) {
        struct pg_region *region = next_armed(engine);
        if (!region)
            break;
        pthread_mutex_lock(&region->lock);
        pg_expire_jobs(region);
        pg_lift_refusal(region);
        due = pg_next_expiry(region);
        due = pg_next_lift(region) < due ? pg_next_lift(region) : due;
        if (due != UINT64_MAX)
            pg_arm(region, due);
        pthread_mutex_unlock(&region->lock);
    }
    pthread_mutex_unlock(&engine->places_lock);
}

/* With `kind`, those whose faults come from there. */
static void lose_all(struct pg_engine *engine, int kind, int error)
{
    pthread_mutex_lock(&engine->places_lock);
    for (uint32_t i = 0; i < engine->place_count; i++) {
        struct pg_region *region = engine->places[i].region;
        if ((kind < 0 || region->uffd.region == engine->kinds[kind].region) &&
            !__atomic_load_n(&region->ending, __ATOMIC_ACQUIRE))
            pg_lose(region, error);
    }
    pthread_mutex_unlock(&engine->places_lock);
}

/* 0, or -errno: no fault can be answered any more. Regions come and go only while nothing is being
 * served, so an event is not taken for one of a region that has come to the same place since. */
static int serve(struct pg_engine *engine, int fd)
{
    struct pm_uffd_msg messages[EVENTS];
    struct pg_region *region = NULL;
    uint64_t began;
    ssize_t got;
    int error;

    pthread_mutex_lock(&engine->places_lock);
    got = read(fd, messages, sizeof messages);
    error = got < 0 ? -errno : got ? 0 : -EIO;
    began = pg_now();
    for (size_t i = 0; got > 0 && i < (size_t)got / sizeof messages[0]; i++) {
        struct pg_region *other = messages[i].event == PM_UFFD_EVENT_PAGEFAULT
                                      ? pg_engine_find(engine, messages[i].arg[1])
                                      : NULL;
        if (!other)
            continue; /* it is being closed, which wakes who waits */
        if (region && region != other)
            pthread_mutex_unlock(&region->lock);
        if (region != other)
            pthread_mutex_lock(&other->lock);
        region = other;
        pg_fault(region, &messages[i], began);
        if (region->refused_count)
            pg_arm(region, pg_next_lift(region));
    }
    if (region)
        pthread_mutex_unlock(&region->lock);
    pthread_mutex_unlock(&engine->places_lock);
    return error == -EAGAIN || error == -EINTR ? 0 : error;
}

/* Whether all regions have gone; else what to wait for. */
static int is_over(struct pg_engine *engine, struct pollfd polled[POLLED])
{
    int over;

    pthread_mutex_lock(&engine->lock);
    over = engine->retired && !engine->regions;
    for (int kind = 0; kind < PG_KINDS; kind++)
        if (engine->has_kind[kind] && polled[kind].events)
            polled[kind].fd = engine->kinds[kind].region;
    if (engine->retired)
        polled[WATCHED].fd = -1; /* closed by the library */
    pthread_mutex_unlock(&engine->lock);
    return over;
}

void *pg_react(void *argument)
{
    struct pg_engine *engine = argument;
    struct pollfd polled[POLLED] = {{-1, POLLIN, 0},
                                    {-1, POLLIN, 0},
                                    {-1, POLLIN, 0},
                                    {-1, POLLIN, 0},
                                    {engine->wakeup, POLLIN, 0},
                                    {engine->watched, 0, 0},
                                    {-1, POLLIN, 0}};
    uint64_t looked = 0, woken, due;

    while (!is_over(engine, polled)) {
        due = next_due(engine);
        polled[RING].fd = engine->flights.ring.fd;
        if (pg_poll_until(polled, POLLED, due) < 0)
            continue;
        if (polled[WAKEUP].revents && read(engine->wakeup, &woken, sizeof woken) < 0)
            continue;
        if (polled[WATCHED].revents && !is_over(engine, polled)) {
            if (polled[WATCHED].fd >= 0)
                lose_all(engine, -1, 0);
            polled[WATCHED].fd = -1;
        }
        for (int kind = 0; kind < PG_KINDS; kind++) {
            int error = polled[kind].revents ? serve(engine, polled[kind].fd) : 0;
            if (error) {
                /* Nobody would be answered, and this thread not wait. */
                polled[kind].fd = -1;
                polled[kind].events = 0;
                lose_all(engine, kind, -error);
            }
        }
        if (due != UINT64_MAX && (pg_now() >= due || pg_now() - looked >= TICKING)) {
            keep_time(engine);
            looked = pg_now();
        }
        /* Last: whatever is done before may want a read. */
        pg_fly(&engine->flights);
    }
    return NULL;
}

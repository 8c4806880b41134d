/* One fault; and the event loop of a region that has threads of its own: one thread that answers
 * faults, and waits for nothing else. */
#include "pager/engine/faults.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "pager/engine/arriving.h"
#include "pager/engine/choice.h"
#include "pager/engine/flights.h"
#include "pager/engine/leaving.h"
#include "pager/engine/work.h"
#include "pager/mechanisms/channel.h"
#include "uapi.h"

enum { EVENTS = 16 };

/* ns between looks whether others are still in I/O. */
#define TICKING UINT64_C(1000000000)

#define FLAG_WRITE UINT64_C(1)
#define FLAG_WP UINT64_C(2)

static uint64_t page_of(const struct pg_region *region, uint64_t address)
{
    return address & ~(region->uffd.page_size - 1);
}

static void wake_page(const struct pg_region *region, uint64_t address)
{
    pg_wake(&region->uffd, page_of(region, address), region->uffd.page_size);
}

/* A page of a resident block: the event is late, or the user has discarded the page. */
static void fault_resident(struct pg_region *region, pg_entry entry, uint64_t address,
                           uint64_t began)
{
    struct pg_block *block = &region->blocks.at[entry];
    uint64_t page = page_of(region, address);

    if (pg_is_answered(&region->uffd, page)) {
        wake_page(region, address);
        return;
    }
    region->counters.faults++;
    pg_unlist(&region->blocks, entry);
    block->flags |= PG_PARTIAL;
    pg_become(&region->blocks, entry, PG_FILLING);
    pg_fill(region, entry, began);
}

/* The first write to a block that is write-protected because it is clean. */
static void fault_protected(struct pg_region *region, pg_entry entry, uint64_t address)
{
    uint64_t page = page_of(region, address);
    struct pg_block *block = entry == PG_NONE ? NULL : &region->blocks.at[entry];

    if (block && block->state == PG_FILLING && pg_is_there(&region->uffd, page)) {
        /* Other pages of it are missing, which may take a while, but not this one. */
        region->counters.write_faults++;
        pg_set_dirty(&region->blocks, entry, 1);
        pg_protect(&region->uffd, page, region->uffd.page_size, 0);
        return;
    }
    if (block && block->state == PG_ERROR && pg_is_late(region, block->number)) {
        /* The helper has put it there late, in the place of the poison, and will say so. */
        pg_discard(&region->uffd, page, region->uffd.page_size);
        pg_poison(&region->uffd, page, region->uffd.page_size);
        return;
    }
    if (!block || block->state != PG_RESIDENT) {
        /* It has left meanwhile: the thread will find it missing. */
        wake_page(region, address);
        return;
    }
    region->counters.write_faults++;
    pg_note_written(&region->streams, block->number);
    pg_set_dirty(&region->blocks, entry, 1);
    pg_protect(&region->uffd, pg_block_address(region, block->number), region->block_size, 0);
}

/* Of a block that no object has: whether the event is only late, and nobody waits. It was read
 * before the block came and was freed again. Whoever waits, woken, has the same fault once more. */
static int is_stale(struct pg_region *region, uint64_t page)
{
    const unsigned most = sizeof region->doubted / sizeof region->doubted[0];

    for (unsigned i = 0; i < most; i++)
        if (region->doubted[i] == page) {
            region->doubted[i] = 0;
            return 0;
        }
    region->doubted[region->doubts++ % most] = page;
    return 1;
}

static void fault_missing(struct pg_region *region, uint32_t number, uint64_t address, int write,
                          uint64_t began)
{
    pg_entry entry = pg_find(&region->blocks, number);
    struct pg_block *block;
    int sequential, waits, hot;

    if (entry != PG_NONE && region->blocks.at[entry].state == PG_RESIDENT) {
        fault_resident(region, entry, address, began);
        return;
    }
    if (entry == PG_NONE && !pg_is_owned(region, number) &&
        is_stale(region, page_of(region, address))) {
        wake_page(region, address);
        return;
    }
    region->counters.faults++;
    sequential = pg_note_touch(region, number);
    if (entry == PG_NONE) {
        hot = pg_note_missed(region, number, sequential);
        entry = pg_begin(&region->blocks, number);
        if (entry == PG_NONE) {
            /* No memory for its state: let the thread try again. */
            wake_page(region, address);
            return;
        }
        region->blocks.at[entry].hot = hot & 1;
        region->blocks.at[entry].flags = sequential ? PG_SEQUENCE : 0;
        region->blocks.at[entry].flags |= write ? PG_WRITE_WANTED : 0;
        pg_fill(region, entry, began);
        return;
    }
    block = &region->blocks.at[entry];
    waits = block->flags & PG_WANTED;
    block->flags |= write ? PG_WANTED | PG_WRITE_WANTED : PG_WANTED;
    if (block->state == PG_WRITING && !waits) {
        pg_do_job(region, (struct pg_job){.entry = entry,
                                          .number = number,
                                          .slot = PG_NO_SLOT,
                                          .writing = 1,
                                          .began = began});
    } else if (block->state == PG_STAGED) {
        struct pg_job job = {.entry = entry, .number = number, .slot = block->slot, .began = began};
        pg_note_rescued(region, entry);
        pg_unlist(&region->blocks, entry);
        pg_become(&region->blocks, entry, PG_FILLING);
        pg_do_job(region, job);
    } else if (block->state == PG_ERROR && pg_is_late(region, number)) {
        /* The poison was discarded, but the helper may still put the block there. */
        pg_poison(&region->uffd, pg_block_address(region, number), region->block_size);
    } else if (block->state == PG_ERROR && pg_is_answered(&region->uffd, address)) {
        /* Reported before it was poisoned, and read after that: no reason for another try. */
        wake_page(region, address);
    } else if (block->state == PG_ERROR) {
        /* The poison was discarded, or a part of it: that asks for another try, of the whole. */
        pg_discard(&region->uffd, pg_block_address(region, number), region->block_size);
        pg_become(&region->blocks, entry, PG_FILLING);
        pg_fill(region, entry, began);
    }
}

void pg_fault(struct pg_region *region, const struct pm_uffd_msg *message, uint64_t began)
{
    uint64_t flags = message->arg[0], address = message->arg[1];
    uint32_t number = (uint32_t)((address - region->base) / region->block_size);

    if (region->plain) /* of the moment in which the pager was about to serve it, and could not */
        wake_page(region, address);
    else if (!pg_writable(region) && flags & (FLAG_WP | FLAG_WRITE))
        pg_refuse(region, address);
    else if (flags & FLAG_WP)
        fault_protected(region, pg_find(&region->blocks, number), address);
    else
        fault_missing(region, number, address, (flags & FLAG_WRITE) != 0, began);
}

/* 0, or -errno: no fault can be answered any more. */
static int serve_events(struct pg_region *region)
{
    struct pm_uffd_msg messages[EVENTS];
    ssize_t got = read(region->uffd.region, messages, sizeof messages);
    uint64_t began = pg_now();

    if (got < 0 && errno != EAGAIN && errno != EINTR)
        return -errno;
    if (got <= 0)
        return got ? 0 : -EIO;
    pthread_mutex_lock(&region->lock);
    pg_look_for_answer(region, 1);
    for (size_t i = 0; i < (size_t)got / sizeof messages[0]; i++)
        if (messages[i].event == PM_UFFD_EVENT_PAGEFAULT)
            pg_fault(region, &messages[i], began);
    pthread_mutex_unlock(&region->lock);
    return 0;
}

/* When to see whether the helper has answered, which wakes nobody: it saves a switch between
 * threads where another fault comes before that. Later than the kernel's next tick, since a timer
 * that is due before that costs a virtual machine more than the switch. ns. */
#define UNHEARD UINT64_C(10000000)

/* When the helper's answer is to be looked for, or late; UINT64_MAX: none is awaited, or it is late
 * already. */
static uint64_t answer_due(const struct pg_region *region)
{
    uint64_t late = region->asked.began + region->timeout + 1000000, look;

    if (!region->lane || region->asked_late)
        return UINT64_MAX;
    look = region->asked.began + UNHEARD;
    return region->listening || late < look ? late : look;
}

/* When to look again, and at which lane: when the helper's answer is late, or a job. While others
 * may be in I/O, soon: a file keeps them in the kernel, where they do not tick (clock.h), and this
 * thread does it for them. UINT64_MAX: nothing is awaited. */
static uint64_t next_due(struct pg_region *region, struct pollfd *lane)
{
    uint64_t until, answer;

    pthread_mutex_lock(&region->lock);
    lane->fd = region->lane ? pg_lane_descriptor(region->lane) : -1;
    answer = answer_due(region);
    until = pg_next_expiry(region);
    if (pg_is_working(region) && until > pg_now() + TICKING)
        until = pg_now() + TICKING;
    pthread_mutex_unlock(&region->lock);
    until = pg_next_lift(region) < until ? pg_next_lift(region) : until;
    return answer < until ? answer : until;
}

void pg_look_at_jobs(const struct pg_region *region)
{
    uint64_t one = 1;

    if (region->engine)
        return; /* it is awake while any thread is at work, or has jobs */
    if (write(region->wakeup, &one, sizeof one) < 0)
        return; /* an eventfd takes this always */
}

/* What is late by now, and what the helper has answered. */
static void serve_others(struct pg_region *region, struct pollfd *polled, int ready)
{
    uint64_t woken;

    if (polled[1].revents && read(region->wakeup, &woken, sizeof woken) < 0)
        return;
    pthread_mutex_lock(&region->lock);
    pg_look_for_answer(region, 1);
    if (region->lane && !region->listening && pg_now() >= answer_due(region))
        pg_listen(region);
    if (region->lane && (polled[2].revents || pg_now() >= answer_due(region)))
        pg_take_answer(region);
    if (!ready)
        pg_expire_jobs(region);
    pthread_mutex_unlock(&region->lock);
}

void pg_serve(struct pg_region *region)
{
    struct pollfd polled[5] = {{region->uffd.region, POLLIN, 0},
                               {region->wakeup, POLLIN, 0},
                               {-1, POLLIN, 0},
                               {region->watched, 0, 0},
                               {-1, POLLIN, 0}};

    for (;;) {
        int ready, error;
        polled[4].fd = region->flights ? region->flights->ring.fd : -1;
        ready = pg_poll_until(polled, 5, next_due(region, &polled[2]));
        if (__atomic_load_n(&region->stop, __ATOMIC_ACQUIRE))
            return;
        if (polled[3].revents) {
            polled[3].fd = -1;
            if (!__atomic_load_n(&region->ending, __ATOMIC_ACQUIRE))
                pg_lose(region, 0);
        }
        if (!ready || polled[1].revents || polled[2].revents)
            serve_others(region, polled, ready);
        error = polled[0].revents ? serve_events(region) : 0;
        if (error) {
            /* Nobody would be answered, and this thread not wait. */
            polled[0].fd = polled[3].fd = -1;
            pg_lose(region, -error);
        }
        if (region->refused_count) {
            pthread_mutex_lock(&region->lock);
            pg_lift_refusal(region);
            pthread_mutex_unlock(&region->lock);
        }
        /* Last: whatever is done before may want a read. */
        if (region->flights)
            pg_fly(region->flights);
    }
}

#include "pager/mechanisms/coders.h"

#include <stdlib.h>

void pg_coders_init(struct pg_coders *coders, uint64_t block_size, int dumped)
{
    *coders = (struct pg_coders){.block_size = block_size, .dumped = dumped};
    pthread_mutex_init(&coders->lock, NULL);
}

void pg_coders_forked(struct pg_coders *coders)
{
    pg_coders_init(coders, coders->block_size, coders->dumped);
}

void pg_coders_free(struct pg_coders *coders)
{
    struct pg_idle *idle = coders->idle, *next;

    for (; idle; idle = next) {
        next = idle->next;
        pg_coder_free(idle->coder);
        free(idle);
    }
}

struct pg_idle *pg_borrow(struct pg_coders *coders)
{
    struct pg_idle *idle;

    pthread_mutex_lock(&coders->lock);
    idle = coders->idle;
    if (idle)
        coders->idle = idle->next;
    pthread_mutex_unlock(&coders->lock);
    if (idle)
        return idle;
    idle = malloc(sizeof *idle);
    if (!idle)
        return NULL;
    idle->coder = pg_coder_new(coders->block_size, coders->dumped);
    if (idle->coder)
        return idle;
    free(idle);
    return NULL;
}

void pg_give_back(struct pg_coders *coders, struct pg_idle *idle)
{
    pthread_mutex_lock(&coders->lock);
    idle->next = coders->idle;
    coders->idle = idle;
    pthread_mutex_unlock(&coders->lock);
}

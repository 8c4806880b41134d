/* Coders for as many threads as use some at once. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_CODERS_H
#define PAGEMOVE_PAGER_MECHANISMS_CODERS_H

#include <pthread.h>
#include <stdint.h>

#include "pager/mechanisms/codec.h"

/* One that no thread uses, or that one has borrowed. */
struct pg_idle {
    struct pg_coder *coder;
    struct pg_idle *next;
};

struct pg_coders {
    pthread_mutex_t lock;
    struct pg_idle *idle;
    uint64_t block_size;
    int dumped;
};

void pg_coders_init(struct pg_coders *coders, uint64_t block_size, int dumped);

/* In a forked child: threads of the parent may have borrowed some, or have the lock. */
void pg_coders_forked(struct pg_coders *coders);

/* When none is borrowed any more. */
void pg_coders_free(struct pg_coders *coders);

/* A coder for this thread alone, or NULL: no memory; and give it back. */
struct pg_idle *pg_borrow(struct pg_coders *coders);
void pg_give_back(struct pg_coders *coders, struct pg_idle *idle);

#endif

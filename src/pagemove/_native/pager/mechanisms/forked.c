/* Compressed memory of a process that forks. */
#define _GNU_SOURCE
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/kept.h"

pthread_mutex_t *pg_compressed_lock(struct pg_compressed *memory)
{
    return &memory->lock;
}

void pg_compressed_part(struct pg_compressed *memory)
{
    pg_spills_freeze(memory->files);
}

void pg_compressed_thaw(struct pg_compressed *memory)
{
    pthread_mutex_lock(&memory->lock);
    pg_spills_thaw(memory->files);
    pthread_mutex_unlock(&memory->lock);
}

int pg_compressed_lend(struct pg_compressed *memory, pid_t owner)
{
    return pg_spills_lend(memory->files, owner);
}

void pg_compressed_take_back(struct pg_compressed *memory)
{
    pg_spills_take_back(memory->files);
}

void pg_compressed_forked(struct pg_compressed *memory)
{
    pthread_mutex_init(&memory->lock, NULL);
    pg_spills_accept(memory->files);
    pg_coders_forked(&memory->coders);
}

size_t pg_compressed_descriptors(const struct pg_compressed *memory, int *fds)
{
    return pg_spills_descriptors(memory->files, fds);
}

#define _GNU_SOURCE
#include "pager/mechanisms/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pager/mechanisms/channel.h"
#include "pager/mechanisms/clock.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/file.h"
#include "pager/mechanisms/helper.h"
#include "pager/mechanisms/holes.h"
#include "pager/mechanisms/taking.h"

/* A block at a time is within what a lane to a helper takes. */
enum { FORGOTTEN = 65536 };

int pg_store_init(struct pg_store *store, const struct pg_config *config, int region,
                  char text[PG_TEXT])
{
    size_t bytes = config->injection_count * sizeof *store->injections;
    int error;

    *store = (struct pg_store){.fd = -1,
                               .direct = {.fd = -1},
                               .past = {.fd = -1},
                               .offset = config->offset,
                               .nbytes = config->nbytes,
                               .injection_count = config->injection_count};
    pthread_mutex_init(&store->lock, NULL);
    if (config->helper || config->compression || config->taking) {
        store->said = calloc(PG_SAID, sizeof *store->said);
        if (!store->said)
            return -ENOMEM;
    }
    if (config->helper) {
        error = pg_channel_open(config->helper, region, config->timeout_ns, &store->channel, text);
        if (error)
            return error;
    } else if (config->compression) {
        store->compressed = config->kept;
        error = config->kept ? 0 : pg_compressed_open(config, &store->compressed, text);
        if (error)
            return error;
    } else if (config->taking) {
        error = pg_taken_open(config->taking, config->nbytes, &store->taken, text);
        if (error)
            return error;
    } else {
        store->fd = fcntl(config->fd, F_DUPFD_CLOEXEC, 3);
        if (store->fd < 0)
            return -errno;
        store->whole = pg_file_has_all(store);
        if (config->direct & PG_DIRECT_READS)
            pg_direct_open(&store->direct, store->fd, store->offset, config->block_size, 0);
        if (config->direct & PG_DIRECT_WRITES)
            pg_direct_open(&store->past, store->fd, store->offset, config->block_size, 1);
    }
    store->label = strdup(config->label ? config->label : "");
    store->injections = malloc(bytes ? bytes : 1);
    if (!store->label || !store->injections) {
        pg_store_free(store, 0);
        return -ENOMEM;
    }
    if (bytes)
        memcpy(store->injections, config->injections, bytes);
    return 0;
}

void pg_store_free(struct pg_store *store, int inherited)
{
    if (store->channel)
        pg_channel_close(store->channel, inherited);
    if (store->compressed)
        pg_compressed_close(store->compressed);
    if (store->taken && inherited)
        pg_taken_forget(store->taken);
    else if (store->taken)
        pg_taken_close(store->taken);
    if (store->fd >= 0)
        close(store->fd);
    pg_direct_close(&store->direct);
    pg_direct_close(&store->past);
    free(store->injections);
    free(store->said);
    store->channel = NULL;
    store->compressed = NULL;
    store->taken = NULL;
    store->fd = -1;
    store->injections = NULL;
    store->injection_count = 0;
    store->said = NULL;
}

int pg_inject(struct pg_store *store, int operation, uint64_t *shorten)
{
    uint64_t call;
    int error = 0;

    *shorten = 0;
    if (!store->injection_count)
        return 0;
    call = __atomic_fetch_add(&store->calls[operation], 1, __ATOMIC_RELAXED);
    for (size_t i = 0; i < store->injection_count; i++) {
        const struct pg_injection *one = &store->injections[i];
        if (one->operation != operation || call < one->first ||
            (one->count && call - one->first >= one->count))
            continue;
        if (one->kind == PG_INJECT_DELAY) {
            pg_sleep((uint64_t)one->value);
        } else if (one->kind == PG_INJECT_SHORT) {
            *shorten = (uint64_t)one->value;
        } else {
            error = (int)one->value;
        }
    }
    return error;
}

/* The pieces as far as they lie within the store. Returns the bytes in them. */
static uint64_t clip(const struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                     size_t count, struct iovec *vector, size_t *used)
{
    uint64_t left = offset < store->nbytes ? store->nbytes - offset : 0, total = 0;

    *used = 0;
    for (size_t i = 0; i < count && left; i++) {
        uint64_t length = pieces[i].length < left ? pieces[i].length : left;
        vector[(*used)++] = (struct iovec){pieces[i].address, length};
        total += length;
        left -= length;
    }
    return total;
}

/* Set everything from byte `from` of the pieces on to zero. */
static void clear_rest(const struct pg_piece *pieces, size_t count, uint64_t from)
{
    for (size_t i = 0; i < count; i++) {
        if (from < pieces[i].length)
            memset((char *)pieces[i].address + from, 0, pieces[i].length - from);
        from -= from < pieces[i].length ? from : pieces[i].length;
    }
}

/* Have the helper do it. */
static int call(struct pg_store *store, int operation, uint64_t offset, const struct iovec *vector,
                size_t count)
{
    struct pg_piece pieces[PG_PIECES];
    char text[PG_TEXT];
    uint64_t length = 0;
    int error;

    for (size_t i = 0; i < count; i++) {
        pieces[i] = (struct pg_piece){vector[i].iov_base, vector[i].iov_len};
        length += vector[i].iov_len;
    }
    error = pg_channel_call(store->channel, operation, store->offset + offset, pieces, count, text);
    if (error)
        pg_note_said(store, operation, offset, length, error, text);
    return error;
}

int pg_write_is_late(const struct pg_store *store, uint64_t offset, uint64_t length)
{
    return store->channel && pg_channel_is_late(store->channel, offset, length);
}

int pg_store_ask(struct pg_store *store, uint64_t offset, uint64_t length, uint64_t address,
                 int protect, struct pg_lane **lane)
{
    /* The last block may have a rest to be cleared, and tests want to fail reads. */
    if (!store->channel || store->injection_count || offset + length > store->nbytes)
        return -PG_NOT_NOW;
    return pg_channel_ask(store->channel, store->offset + offset, length, address, protect, lane);
}

int pg_store_is_there(const struct pg_store *store, const struct pg_lane *lane)
{
    return pg_lane_is_done(store->channel, lane);
}

int pg_store_listen(struct pg_store *store, const struct pg_lane *lane)
{
    return pg_lane_listen(store->channel, lane);
}

int pg_store_answer(struct pg_store *store, struct pg_lane *lane, uint64_t offset, uint64_t length,
                    int *said)
{
    char text[PG_TEXT];
    int error = pg_channel_answer(store->channel, lane, said, text);

    if (error || *said)
        pg_note_said(store, PG_OP_READ, offset, length, error ? error : *said, text);
    return error;
}

int pg_store_end(struct pg_store *store)
{
    return store->channel ? pg_channel_end(store->channel) : 0;
}

static int call_memory(struct pg_store *store, int operation, uint64_t offset,
                       const struct iovec *vector, size_t used, uint64_t total, int nowait)
{
    char text[PG_TEXT];
    int reads = operation == PG_OP_READ, error;

    if (store->taken)
        error = reads ? pg_taken_read(store->taken, offset, vector, used, total, nowait, text)
                      : pg_taken_write(store->taken, offset, vector, used, total, text);
    else
        error = reads ? pg_compressed_read(store->compressed, offset, vector, used, nowait, text)
                      : pg_compressed_write(store->compressed, offset, vector, used, text);

    if (error && error != -PG_NOT_NOW && error != -PG_STAYS)
        pg_note_said(store, operation, offset, total, error, text);
    return error;
}

/* Read or write what lies within the store, by whoever has it. */
static int transfer(struct pg_store *store, int operation, uint64_t offset, struct iovec *vector,
                    size_t used, uint64_t total, int nowait)
{
    if (!total)
        return 0;
    if (store->compressed || store->taken)
        return call_memory(store, operation, offset, vector, used, total, nowait);
    if (store->channel)
        return call(store, operation, offset, vector, used);
    return operation == PG_OP_READ ? pg_file_read(store, offset, vector, used, total, nowait)
                                   : pg_file_write(store, offset, vector, used, total);
}

int pg_store_read(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                  size_t count, int nowait, uint64_t *got)
{
    struct iovec vector[PG_PIECES];
    uint64_t shorten, total;
    size_t used;
    int error;

    *got = 0;
    /* A helper answers when it can, and every read that tests count is one that may wait. */
    if (nowait && (store->injection_count || store->channel || store->direct.state == 1))
        return -PG_NOT_NOW;
    error = pg_inject(store, PG_OP_READ, &shorten);
    if (error)
        return -error;
    total = clip(store, offset, pieces, count, vector, &used);
    /* Read without waiting, a hole would be filled with zeros in the page cache. */
    if (store->sparse && nowait && !pg_is_cached(store->fd, store->offset + offset, total))
        return -PG_NOT_NOW;
    if (store->sparse && !nowait) {
        error = pg_file_read_sparse(store, offset, pieces, count, total, got);
    } else {
        *got = total;
        error = store->direct.state == 1 ? pg_file_read_direct(store, offset, pieces, count, total)
                                         : -PG_NOT_NOW;
        if (error)
            error = transfer(store, PG_OP_READ, offset, vector, used, total, nowait);
    }
    if (error)
        return error;
    clear_rest(pieces, count, total);
    return shorten && total ? -PG_SHORT : 0;
}

int pg_store_place(const struct pg_store *store, uint64_t offset, uint64_t length,
                   struct pg_place *place)
{
    uint64_t left = offset < store->nbytes ? store->nbytes - offset : 0;

    /* Tests count reads, and of a file with holes these are not read. */
    if (store->fd < 0 || store->injection_count || store->sparse || !left)
        return -PG_NOT_NOW;
    *place = (struct pg_place){.fd = store->fd,
                               .offset = store->offset + offset,
                               .length = length < left ? length : left,
                               .wanted = length < left ? length : left};
    if (store->direct.state == 1) {
        place->fd = store->direct.fd;
        place->length = length;
    }
    return 0;
}

int pg_store_write(struct pg_store *store, uint64_t offset, const struct pg_piece *pieces,
                   size_t count)
{
    struct iovec vector[PG_PIECES];
    uint64_t shorten, total;
    size_t used;
    int error = pg_inject(store, PG_OP_WRITE, &shorten);

    if (error)
        return -error;
    total = clip(store, offset, pieces, count, vector, &used);
    if (shorten && total) {
        /* Less than all of it arrives, and the caller learns that. */
        uint64_t part = shorten < total ? total - shorten : 0;
        if (part && pwrite(store->fd, vector[0].iov_base,
                           part < vector[0].iov_len ? part : vector[0].iov_len,
                           (off_t)(store->offset + offset)) < 0)
            return -errno;
        return -PG_SHORT;
    }
    /* Writing to one that has been cut short would fill the gap with zeros. */
    if (store->whole && !pg_file_has_all(store))
        return -PG_SHORT;
    return transfer(store, PG_OP_WRITE, offset, vector, used, total, 0);
}

int pg_store_forget(struct pg_store *store, uint64_t offset, uint64_t length, uint64_t block_size)
{
    static const char zeros[FORGOTTEN];

    if (store->compressed) {
        pg_compressed_discard(store->compressed, (uint32_t)(offset / block_size),
                              length / block_size);
        return 0;
    }
    if (store->fd >= 0)
        return fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         (off_t)(store->offset + offset), (off_t)length)
                   ? -errno
                   : 0;
    for (uint64_t done = 0; done < length; done += FORGOTTEN) {
        struct pg_piece piece = {(void *)(uintptr_t)zeros,
                                 length - done < FORGOTTEN ? length - done : FORGOTTEN};
        int error = pg_store_write(store, offset + done, &piece, 1);
        if (error)
            return error;
    }
    return 0;
}

int pg_store_shift(struct pg_store *store, uint32_t to, uint32_t from)
{
    return store->compressed ? pg_compressed_shift(store->compressed, to, from) : -ENOTSUP;
}

int pg_store_sync(struct pg_store *store)
{
    uint64_t shorten;
    int error = pg_inject(store, PG_OP_SYNC, &shorten);

    if (error)
        return -error;
    if (store->channel)
        return call(store, PG_OP_SYNC, 0, NULL, 0);
    if (store->taken) {
        char text[PG_TEXT];
        error = pg_taken_sync(store->taken, text);
        if (error)
            pg_note_said(store, PG_OP_SYNC, 0, 0, error, text);
        return error;
    }
    if (store->compressed)
        return 0; /* it lasts no longer than the process */
    while (fdatasync(store->fd))
        if (errno != EINTR)
            return -errno;
    return 0;
}

void pg_store_stop(struct pg_store *store)
{
    if (store->channel)
        pg_channel_stop(store->channel);
    if (store->taken)
        pg_taken_stop(store->taken);
}

int pg_store_describe(struct pg_store *store, char text[PG_TEXT])
{
    text[0] = 0;
    if (store->compressed)
        pg_compressed_stats(store->compressed, text);
    if (store->taken)
        pg_taken_stats(store->taken, text);
    return store->channel ? pg_channel_call(store->channel, PG_OP_STATS, 0, NULL, 0, text) : 0;
}

/* Blocks that do not shrink: offered to compressed memory, which leaves them where they are. */
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/store.h"

int pg_store_offer(struct pg_store *store, uint32_t number, const struct pg_piece *block)
{
    uint64_t offset = number * block->length, shorten;
    char text[PG_TEXT];
    int error;

    /* The last block may have a rest that is not the store's. */
    if (offset + block->length > store->nbytes)
        return pg_store_write(store, offset, block, 1);
    error = pg_inject(store, PG_OP_WRITE, &shorten);
    if (error || shorten)
        return error ? -error : -PG_SHORT;
    error = pg_compressed_offer(store->compressed, number, block->address, text);
    if (error && error != -PG_STAYS)
        pg_note_said(store, PG_OP_WRITE, offset, block->length, error, text);
    return error;
}

int pg_store_stay(struct pg_store *store, uint32_t number, uint64_t block_size, int again)
{
    char text[PG_TEXT];
    int error = pg_compressed_stay(store->compressed, number, again, text);

    if (error)
        pg_note_said(store, PG_OP_WRITE, number * block_size, block_size, error, text);
    return error;
}

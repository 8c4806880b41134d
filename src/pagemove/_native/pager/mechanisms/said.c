/* Why calls of a store failed, in the words of who has it: the newest of them. */
#include <string.h>

#include "pager/mechanisms/store.h"

void pg_note_said(struct pg_store *store, int operation, uint64_t offset, uint64_t length,
                  int error, const char text[PG_TEXT])
{
    struct pg_said *said;

    pthread_mutex_lock(&store->lock);
    said = &store->said[store->said_count++ % PG_SAID];
    *said = (struct pg_said){
        .operation = operation, .error = -error, .offset = offset, .length = length};
    memcpy(said->text, text, PG_TEXT);
    pthread_mutex_unlock(&store->lock);
}

void pg_store_text(struct pg_store *store, int operation, uint64_t offset, int error,
                   char text[PG_TEXT])
{
    text[0] = 0;
    if (!store->said)
        return;
    pthread_mutex_lock(&store->lock);
    for (uint64_t back = 1; back <= PG_SAID && back <= store->said_count; back++) {
        const struct pg_said *said = &store->said[(store->said_count - back) % PG_SAID];
        if (said->operation != operation || said->error != error ||
            (offset != PG_ANYWHERE && said->length && offset - said->offset >= said->length))
            continue;
        memcpy(text, said->text, PG_TEXT);
        break;
    }
    pthread_mutex_unlock(&store->lock);
}

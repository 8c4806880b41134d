/* What compressed memory keeps of its blocks. Included by compressed.c, keeping.c and amounts.c
 * alone. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_KEPT_H
#define PAGEMOVE_PAGER_MECHANISMS_KEPT_H

#include <pthread.h>
#include <stdint.h>

#include "pager/mechanisms/coders.h"
#include "pager/mechanisms/compressed.h"
#include "pager/mechanisms/slabs.h"
#include "pager/mechanisms/spilled.h"

/* How a block is kept. What was never written is the word 0. IN_PLACE: not here, but in the region,
 * where it takes as much as it would here. */
enum kind { SAME, PACKED, RAW, IN_PLACE, SPILLED, KINDS };

struct kept {
    uint64_t word;   /* the repeated one; a place in slabs; the checksum of what is in a file */
    uint32_t length; /* of what is packed; or the place in a file */
    uint8_t kind;
    uint8_t filter; /* of what is packed; or which file */
};

struct pg_compressed {
    pthread_mutex_t lock;
    uint64_t nbytes, block_size, limit;
    uint32_t blocks;
    int spills; /* there is a directory for what has no room */
    char *spill_name;
    struct pg_spills *files;
    struct kept *kept;
    struct pg_slabs *slabs;
    struct pg_coders coders;
    uint64_t counts[KINDS], packed; /* blocks of each kind, but for zeros; bytes of compressed */
    uint64_t peak;                  /* bytes of memory that they took at most */
};

/* Where in a file it is. */
static inline struct pg_spilled pg_place_of(const struct kept *kept)
{
    return (struct pg_spilled){kept->length, kept->filter};
}

/* keeping.c: keep a block from now on as it is best. 0; -PG_STAYS: in its place, with `offered` or
 * if it has been there; or -errno, and `text` says why. */
int pg_keep_block(struct pg_compressed *memory, struct pg_coder *coder, uint32_t block,
                  const char *bytes, int offered, char text[PG_TEXT]);

/* amounts.c: bytes of memory that all blocks take; of these, those of blocks in place. They want
 * the lock. */
uint64_t pg_bytes_in_place(const struct pg_compressed *memory);
uint64_t pg_bytes_kept(const struct pg_compressed *memory);

/* Whether one more has room in place. Wants the lock. */
int pg_has_room_in_place(const struct pg_compressed *memory);

/* Why a block was not kept; `spilled`: why the file did not take it either, or 0. Returns `error`.
 */
int pg_explain_full(struct pg_compressed *memory, int error, int spilled, char text[PG_TEXT]);

/* It is more than before, perhaps. Wants the lock. */
void pg_note_peak(struct pg_compressed *memory);

#endif

/* Blocks compressed by a library of the system, which is looked for when it is first wanted: LZ4,
 * else zstd. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_CODEC_H
#define PAGEMOVE_PAGER_MECHANISMS_CODEC_H

#include <stddef.h>

/* What compresses, and which version of it; empty: there is no library. */
const char *pg_codec_name(void);

/* What one thread needs at a time: working memory, and what it has learnt of the data. */
struct pg_coder;
struct pg_coder *pg_coder_new(size_t block_size, int dumped);
void pg_coder_free(struct pg_coder *coder);

/* Room for a block and for its compressed bytes, of the coder. */
char *pg_coder_block(const struct pg_coder *coder);
char *pg_coder_packed(const struct pg_coder *coder);

/* Compress a block into the coder's room. Returns how many bytes it has become, and `filter` what
 * was done with it before; 0: more than an eighth less it is not. */
size_t pg_pack(struct pg_coder *coder, const void *block, unsigned *filter);

/* Restore a block from the coder's room. 0 or -EIO. */
int pg_unpack(struct pg_coder *coder, size_t length, unsigned filter, void *block);

#endif

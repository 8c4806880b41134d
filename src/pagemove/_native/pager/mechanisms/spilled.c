/* Blocks of compressed memory that are in its spill file. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "pager/mechanisms/checksum.h"
#include "pager/mechanisms/kept.h"

int pg_spilled_read(struct pg_compressed *memory, uint32_t block, uint64_t checksum, char *to,
                    char text[PG_TEXT])
{
    uint64_t size = memory->block_size;

    for (uint64_t done = 0; done < size;) {
        ssize_t got = pread(memory->spill, to + done, size - done, (off_t)(block * size + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            snprintf(text, PG_TEXT, "the unnamed file of spilled blocks in %.1000s cannot be read",
                     memory->spill_name);
            return got ? -errno : -EIO;
        }
        done += (uint64_t)got;
    }
    if (pg_checksum(to, size) == checksum)
        return 0;
    snprintf(text, PG_TEXT,
             "the block has changed in the unnamed file of spilled blocks in %.1000s: check the "
             "device, and compute it again",
             memory->spill_name);
    return -EIO;
}

int pg_spilled_write(struct pg_compressed *memory, uint32_t block, const char *bytes,
                     uint64_t *checksum)
{
    uint64_t size = memory->block_size;

    for (uint64_t done = 0; done < size;) {
        ssize_t put =
            pwrite(memory->spill, bytes + done, size - done, (off_t)(block * size + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put ? -errno : -EIO;
        done += (uint64_t)put;
    }
    *checksum = pg_checksum(bytes, size);
    return 0;
}

void pg_spilled_free(struct pg_compressed *memory, uint32_t block)
{
    fallocate(memory->spill, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              (off_t)(block * memory->block_size), (off_t)memory->block_size);
}

int pg_compressed_spills(const struct pg_compressed *memory)
{
    return memory->spill >= 0;
}

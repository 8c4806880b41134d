/* The baseline: UFFDIO_MOVE in a loop, as one writes it first, without a look at any answer but
 * success. Compiled by _naive.py; it shares nothing with the library but the kernel. */
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* <linux/userfaultfd.h> of 6.8; the headers installed are often older than the kernel. */
struct move {
    uint64_t dst, src, len, mode;
    int64_t moved;
};
#define MOVE _IOWR(0xAA, 5, struct move)

/* Move `length` bytes from each of `count` addresses; return how often the kernel said no. */
size_t move_each(int fd, const uint64_t *dst, const uint64_t *src, size_t count, uint64_t length)
{
    size_t refused = 0;

    for (size_t i = 0; i < count; i++) {
        struct move move = {.dst = dst[i], .src = src[i], .len = length};
        if (ioctl(fd, MOVE, &move))
            refused++;
    }
    return refused;
}

/* The same for page numbers of two buffers. */
size_t move_pages_of(int fd, uint64_t dst, uint64_t src, const int64_t *dst_pages,
                     const int64_t *src_pages, size_t count, uint64_t page_size)
{
    size_t refused = 0;

    for (size_t i = 0; i < count; i++) {
        struct move move = {.dst = dst + (uint64_t)dst_pages[i] * page_size,
                            .src = src + (uint64_t)src_pages[i] * page_size,
                            .len = page_size};
        if (ioctl(fd, MOVE, &move))
            refused++;
    }
    return refused;
}

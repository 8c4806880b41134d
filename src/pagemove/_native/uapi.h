/* The kernel's ABI as pagemove uses it: numbers and layouts, nothing else.
 *
 * Distribution headers are often older than the running kernel (Debian 12 knows neither UFFDIO_MOVE
 * nor PAGEMAP_SCAN), so every definition is our own; where the system's headers have one too, the
 * static asserts below hold the two together.
 */
#ifndef PAGEMOVE_UAPI_H
#define PAGEMOVE_UAPI_H

#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef SYS_userfaultfd
#error "the C library does not know SYS_userfaultfd; build against Linux headers 4.3 or newer"
#endif

/* userfaultfd(2), ioctl_userfaultfd(2) */
#define PM_UFFD_API UINT64_C(0xAA)
#define PM_UFFD_USER_MODE_ONLY 1

#define PM_REGISTER_MODE_MISSING (UINT64_C(1) << 0)
#define PM_REGISTER_MODE_WP (UINT64_C(1) << 1)
#define PM_REGISTER_MODE_MINOR (UINT64_C(1) << 2)

struct pm_uffdio_api {
    uint64_t api, features, ioctls;
};
struct pm_uffdio_range {
    uint64_t start, len;
};
struct pm_uffdio_register {
    struct pm_uffdio_range range;
    uint64_t mode, ioctls;
};
struct pm_uffdio_copy {
    uint64_t dst, src, len, mode;
    int64_t copy;
};
struct pm_uffdio_zeropage {
    struct pm_uffdio_range range;
    uint64_t mode;
    int64_t zeropage;
};
struct pm_uffdio_writeprotect {
    struct pm_uffdio_range range;
    uint64_t mode;
};
struct pm_uffdio_continue {
    struct pm_uffdio_range range;
    uint64_t mode;
    int64_t mapped;
};
struct pm_uffdio_poison {
    struct pm_uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
struct pm_uffdio_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};

#define PM_UFFDIO_API _IOWR(0xAA, 0x3F, struct pm_uffdio_api)
#define PM_UFFDIO_REGISTER _IOWR(0xAA, 0x00, struct pm_uffdio_register)
#define PM_UFFDIO_UNREGISTER _IOR(0xAA, 0x01, struct pm_uffdio_range)
#define PM_UFFDIO_WAKE _IOR(0xAA, 0x02, struct pm_uffdio_range)
#define PM_UFFDIO_COPY _IOWR(0xAA, 0x03, struct pm_uffdio_copy)
#define PM_UFFDIO_ZEROPAGE _IOWR(0xAA, 0x04, struct pm_uffdio_zeropage)
#define PM_UFFDIO_MOVE _IOWR(0xAA, 0x05, struct pm_uffdio_move)
#define PM_UFFDIO_WRITEPROTECT _IOWR(0xAA, 0x06, struct pm_uffdio_writeprotect)
#define PM_UFFDIO_CONTINUE _IOWR(0xAA, 0x07, struct pm_uffdio_continue)
#define PM_UFFDIO_POISON _IOWR(0xAA, 0x08, struct pm_uffdio_poison)

/* /dev/userfaultfd: ioctl(fd, USERFAULTFD_IOC_NEW, flags) returns a new userfaultfd */
#define PM_USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)

#define PM_UFFD_EVENT_PAGEFAULT 0x12
#define PM_UFFD_EVENT_FORK 0x13
#define PM_UFFD_EVENT_REMAP 0x14
#define PM_UFFD_EVENT_REMOVE 0x15
#define PM_UFFD_EVENT_UNMAP 0x16

/* struct uffd_msg: 32 bytes, packed; the three words mean what the event says */
struct pm_uffd_msg {
    uint8_t event, reserved1;
    uint16_t reserved2;
    uint32_t reserved3;
    uint64_t arg[3];
};
_Static_assert(sizeof(struct pm_uffd_msg) == 32, "struct uffd_msg is 32 bytes");

#define PM_SAME_LAYOUT(name)                                                                       \
    _Static_assert(sizeof(struct pm_##name) == sizeof(struct name), #name " has another size "     \
                                                                          "here")
PM_SAME_LAYOUT(uffdio_api);
PM_SAME_LAYOUT(uffdio_range);
PM_SAME_LAYOUT(uffdio_register);
PM_SAME_LAYOUT(uffdio_copy);
PM_SAME_LAYOUT(uffdio_zeropage);
PM_SAME_LAYOUT(uffd_msg);
_Static_assert(PM_UFFDIO_API == UFFDIO_API, "UFFDIO_API");
_Static_assert(PM_UFFDIO_REGISTER == UFFDIO_REGISTER, "UFFDIO_REGISTER");
_Static_assert(PM_UFFDIO_UNREGISTER == UFFDIO_UNREGISTER, "UFFDIO_UNREGISTER");
_Static_assert(PM_UFFDIO_WAKE == UFFDIO_WAKE, "UFFDIO_WAKE");
_Static_assert(PM_UFFDIO_COPY == UFFDIO_COPY, "UFFDIO_COPY");
_Static_assert(PM_UFFDIO_ZEROPAGE == UFFDIO_ZEROPAGE, "UFFDIO_ZEROPAGE");
#ifdef UFFDIO_WRITEPROTECT
PM_SAME_LAYOUT(uffdio_writeprotect);
_Static_assert(PM_UFFDIO_WRITEPROTECT == UFFDIO_WRITEPROTECT, "UFFDIO_WRITEPROTECT");
#endif
#ifdef UFFDIO_CONTINUE
PM_SAME_LAYOUT(uffdio_continue);
_Static_assert(PM_UFFDIO_CONTINUE == UFFDIO_CONTINUE, "UFFDIO_CONTINUE");
#endif
#ifdef UFFDIO_POISON
PM_SAME_LAYOUT(uffdio_poison);
_Static_assert(PM_UFFDIO_POISON == UFFDIO_POISON, "UFFDIO_POISON");
#endif
#ifdef UFFDIO_MOVE
PM_SAME_LAYOUT(uffdio_move);
_Static_assert(PM_UFFDIO_MOVE == UFFDIO_MOVE, "UFFDIO_MOVE");
#endif

/* /proc/PID/pagemap and its PAGEMAP_SCAN ioctl (Documentation/admin-guide/mm/pagemap.rst) */
#define PM_PAGE_IS_WPALLOWED (UINT64_C(1) << 0)
#define PM_PAGE_IS_WRITTEN (UINT64_C(1) << 1)
#define PM_PAGE_IS_FILE (UINT64_C(1) << 2)
#define PM_PAGE_IS_PRESENT (UINT64_C(1) << 3)
#define PM_PAGE_IS_SWAPPED (UINT64_C(1) << 4)
#define PM_PAGE_IS_PFNZERO (UINT64_C(1) << 5)
#define PM_PAGE_IS_HUGE (UINT64_C(1) << 6)

struct pm_page_region {
    uint64_t start, end, categories;
};
struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PM_PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)

/* /proc/PID/maps and its PROCMAP_QUERY ioctl (Linux 6.11) */
struct pm_procmap_query {
    uint64_t size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size;
    uint64_t vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};
#define PM_PROCMAP_QUERY _IOWR('f', 17, struct pm_procmap_query)
_Static_assert(sizeof(struct pm_procmap_query) == 104, "struct procmap_query is 104 bytes");

/* mmap(2), mremap(2), madvise(2), prctl(2): what older C libraries leave out */
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#define PM_PR_SET_VMA 0x53564d41
#define PM_PR_SET_VMA_ANON_NAME 0

#endif

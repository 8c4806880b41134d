"""The kernel structures and constants of uapi.h, for Cython."""

from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "uapi.h" nogil:
    struct pm_uffdio_api:
        uint64_t api, features, ioctls
    struct pm_uffdio_range:
        uint64_t start, len
    struct pm_uffdio_register:
        pm_uffdio_range range
        uint64_t mode, ioctls
    struct pm_uffdio_copy:
        uint64_t dst, src, len, mode
        int64_t copy
    struct pm_uffdio_zeropage:
        pm_uffdio_range range
        uint64_t mode
        int64_t zeropage
    struct pm_uffdio_writeprotect:
        pm_uffdio_range range
        uint64_t mode
    struct pm_uffdio_continue:
        pm_uffdio_range range
        uint64_t mode
        int64_t mapped
    struct pm_uffdio_poison:
        pm_uffdio_range range
        uint64_t mode
        int64_t updated
    struct pm_uffdio_move:
        uint64_t dst, src, len, mode
        int64_t move
    struct pm_uffd_msg:
        uint8_t event
        uint64_t arg[3]
    struct pm_page_region:
        uint64_t start, end, categories
    struct pm_scan_arg:
        uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages
        uint64_t category_inverted, category_mask, category_anyof_mask, return_mask

    unsigned long PM_UFFDIO_API, PM_UFFDIO_REGISTER, PM_UFFDIO_UNREGISTER, PM_UFFDIO_WAKE
    unsigned long PM_UFFDIO_COPY, PM_UFFDIO_ZEROPAGE, PM_UFFDIO_MOVE, PM_UFFDIO_WRITEPROTECT
    unsigned long PM_UFFDIO_CONTINUE, PM_UFFDIO_POISON, PM_USERFAULTFD_IOC_NEW
    unsigned long PM_PAGEMAP_SCAN
    uint64_t PM_UFFD_API
    uint64_t PM_REGISTER_MODE_WP
    int PM_PR_SET_VMA, PM_PR_SET_VMA_ANON_NAME
    int MAP_FIXED_NOREPLACE, MREMAP_DONTUNMAP, MADV_POPULATE_WRITE
    long SYS_userfaultfd

"""One function a system call: integers in, integers out, `OSError` on failure.

Nothing here decides anything. Every call releases the GIL, because each may sleep, or fault on a
page that another thread of this interpreter has to supply.
"""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from pagemove._native.uapi cimport (
    MADV_POPULATE_WRITE,
    PM_PAGEMAP_SCAN,
    PM_PR_SET_VMA,
    PM_PR_SET_VMA_ANON_NAME,
    PM_UFFD_API,
    PM_UFFDIO_API,
    PM_UFFDIO_CONTINUE,
    PM_UFFDIO_COPY,
    PM_UFFDIO_MOVE,
    PM_UFFDIO_POISON,
    PM_UFFDIO_REGISTER,
    PM_UFFDIO_UNREGISTER,
    PM_UFFDIO_WAKE,
    PM_UFFDIO_WRITEPROTECT,
    PM_UFFDIO_ZEROPAGE,
    PM_USERFAULTFD_IOC_NEW,
    SYS_userfaultfd,
    pm_page_region,
    pm_scan_arg,
    pm_uffd_msg,
    pm_uffdio_api,
    pm_uffdio_continue,
    pm_uffdio_copy,
    pm_uffdio_move,
    pm_uffdio_poison,
    pm_uffdio_range,
    pm_uffdio_register,
    pm_uffdio_writeprotect,
    pm_uffdio_zeropage,
)

import os


cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)

cdef extern from "<sys/mman.h>" nogil:
    void *c_mmap "mmap"(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int c_munmap "munmap"(void *addr, size_t length)
    void *c_mremap "mremap"(void *old, size_t old_length, size_t new_length, int flags, ...)
    int c_madvise "madvise"(void *addr, size_t length, int advice)
    int c_mprotect "mprotect"(void *addr, size_t length, int prot)
    int c_mincore "mincore"(void *addr, size_t length, unsigned char *vec)
    void *MAP_FAILED

cdef extern from "<sys/resource.h>" nogil:
    struct rusage:
        long ru_minflt, ru_majflt
    int getrusage(int who, rusage *usage)
    int RUSAGE_THREAD

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    ssize_t c_read "read"(int fd, void *buffer, size_t count)


cdef uint64_t _PAGE_SIZE = os.sysconf("SC_PAGESIZE")


cdef object _failed(str call, int error):
    return OSError(error, f"{call}: {os.strerror(error)}")


def userfaultfd(int flags):
    """Open a userfaultfd by system call; `flags` as in userfaultfd(2). Return the descriptor."""
    cdef long fd
    with nogil:
        fd = syscall(SYS_userfaultfd, flags)
    if fd < 0:
        raise _failed("userfaultfd", errno)
    return fd


def userfaultfd_new(int device, int flags):
    """Open a userfaultfd through an open /dev/userfaultfd. Return the descriptor."""
    cdef int fd
    with nogil:
        fd = ioctl(device, PM_USERFAULTFD_IOC_NEW, flags)
    if fd < 0:
        raise _failed("USERFAULTFD_IOC_NEW", errno)
    return fd


def api(int fd, uint64_t features=0):
    """UFFDIO_API: enable `features`; return (features, ioctls) the kernel offers."""
    cdef pm_uffdio_api arg
    cdef int result
    arg.api = PM_UFFD_API
    arg.features = features
    arg.ioctls = 0
    with nogil:
        result = ioctl(fd, PM_UFFDIO_API, &arg)
    if result:
        raise _failed("UFFDIO_API", errno)
    return arg.features, arg.ioctls


def register(int fd, uint64_t start, uint64_t length, uint64_t mode):
    """UFFDIO_REGISTER: let `fd` know the range; return the ioctls it allows there."""
    cdef pm_uffdio_register arg
    cdef int result
    arg.range.start = start
    arg.range.len = length
    arg.mode = mode
    arg.ioctls = 0
    with nogil:
        result = ioctl(fd, PM_UFFDIO_REGISTER, &arg)
    if result:
        raise _failed("UFFDIO_REGISTER", errno)
    return arg.ioctls


cdef int _range_ioctl(int fd, unsigned long request, str name, uint64_t start,
                      uint64_t length) except -1:
    cdef pm_uffdio_range arg
    cdef int result
    arg.start = start
    arg.len = length
    with nogil:
        result = ioctl(fd, request, &arg)
    if result:
        raise _failed(name, errno)
    return 0


def unregister(int fd, uint64_t start, uint64_t length):
    """UFFDIO_UNREGISTER: forget the range; waiting faults get zero pages."""
    _range_ioctl(fd, PM_UFFDIO_UNREGISTER, "UFFDIO_UNREGISTER", start, length)


def wake(int fd, uint64_t start, uint64_t length):
    """UFFDIO_WAKE: wake the threads that wait for a page of the range."""
    _range_ioctl(fd, PM_UFFDIO_WAKE, "UFFDIO_WAKE", start, length)


def copy(int fd, uint64_t dst, uint64_t src, uint64_t length, uint64_t mode=0):
    """UFFDIO_COPY: fill missing pages from `src`; return the bytes copied, perhaps fewer."""
    cdef pm_uffdio_copy arg
    cdef int result
    arg.dst = dst
    arg.src = src
    arg.len = length
    arg.mode = mode
    arg.copy = 0
    with nogil:
        result = ioctl(fd, PM_UFFDIO_COPY, &arg)
    return _progress("UFFDIO_COPY", result, arg.copy)


def zeropage(int fd, uint64_t start, uint64_t length, uint64_t mode=0):
    """UFFDIO_ZEROPAGE: map the zero page over missing pages; return the bytes mapped."""
    cdef pm_uffdio_zeropage arg
    cdef int result
    arg.range.start = start
    arg.range.len = length
    arg.mode = mode
    arg.zeropage = 0
    with nogil:
        result = ioctl(fd, PM_UFFDIO_ZEROPAGE, &arg)
    return _progress("UFFDIO_ZEROPAGE", result, arg.zeropage)


def move(int fd, uint64_t dst, uint64_t src, uint64_t length, uint64_t mode=0):
    """UFFDIO_MOVE as the kernel has it, defects included; return the bytes it says it moved."""
    cdef pm_uffdio_move arg
    cdef int result
    arg.dst = dst
    arg.src = src
    arg.len = length
    arg.mode = mode
    arg.move = 0
    with nogil:
        result = ioctl(fd, PM_UFFDIO_MOVE, &arg)
    return _progress("UFFDIO_MOVE", result, arg.move)


def writeprotect(int fd, uint64_t start, uint64_t length, uint64_t mode):
    """UFFDIO_WRITEPROTECT: protect (mode 1) or release (mode 0) the pages of the range."""
    cdef pm_uffdio_writeprotect arg
    cdef int result
    arg.range.start = start
    arg.range.len = length
    arg.mode = mode
    with nogil:
        result = ioctl(fd, PM_UFFDIO_WRITEPROTECT, &arg)
    if result:
        raise _failed("UFFDIO_WRITEPROTECT", errno)


def continue_(int fd, uint64_t start, uint64_t length, uint64_t mode=0):
    """UFFDIO_CONTINUE: map pages that the page cache already holds; return the bytes mapped."""
    cdef pm_uffdio_continue arg
    cdef int result
    arg.range.start = start
    arg.range.len = length
    arg.mode = mode
    arg.mapped = 0
    with nogil:
        result = ioctl(fd, PM_UFFDIO_CONTINUE, &arg)
    return _progress("UFFDIO_CONTINUE", result, arg.mapped)


def poison(int fd, uint64_t start, uint64_t length, uint64_t mode=0):
    """UFFDIO_POISON: make touching the missing pages SIGBUS; return the bytes poisoned."""
    cdef pm_uffdio_poison arg
    cdef int result
    arg.range.start = start
    arg.range.len = length
    arg.mode = mode
    arg.updated = 0
    with nogil:
        result = ioctl(fd, PM_UFFDIO_POISON, &arg)
    return _progress("UFFDIO_POISON", result, arg.updated)


cdef object _progress(str name, int result, int64_t done):
    # EAGAIN with a positive count is the kernel's short count, not a failure.
    cdef int error = errno
    if result and not (error == EAGAIN and done > 0):
        raise _failed(name, error)
    return done


def read_events(int fd, int most=16):
    """Read up to `most` (1 to 64) waiting events: a list of (event, word, word, word).

    The three words are those of `struct uffd_msg`: for a page fault the flags, the address and the
    thread id; for a fork the new descriptor; for remap, remove and unmap the addresses. On a
    non-blocking descriptor with nothing to read the list is empty.
    """
    cdef pm_uffd_msg messages[64]
    cdef ssize_t got
    cdef size_t room
    if not 1 <= most <= 64:
        raise ValueError(f"most must be 1 to 64, not {most}")
    room = most * sizeof(pm_uffd_msg)
    with nogil:
        got = c_read(fd, messages, room)
    if got < 0:
        if errno == EAGAIN:
            return []
        raise _failed("read of a userfaultfd", errno)
    return [
        (messages[i].event, messages[i].arg[0], messages[i].arg[1], messages[i].arg[2])
        for i in range(got // <ssize_t> sizeof(pm_uffd_msg))
    ]


def mmap(uint64_t address, uint64_t length, int prot, int flags, int fd=-1, long offset=0):
    """mmap(2); return the address."""
    cdef void *result
    with nogil:
        result = c_mmap(<void *> <uintptr_t> address, length, prot, flags, fd, offset)
    if result == MAP_FAILED:
        raise _failed("mmap", errno)
    return <uintptr_t> result


def munmap(uint64_t address, uint64_t length):
    """munmap(2)."""
    cdef int result
    with nogil:
        result = c_munmap(<void *> <uintptr_t> address, length)
    if result:
        raise _failed("munmap", errno)


def mremap(uint64_t src, uint64_t old_length, uint64_t new_length, int flags, uint64_t dst=0):
    """mremap(2); `dst` counts only with MREMAP_FIXED. Return the new address."""
    cdef void *result
    with nogil:
        result = c_mremap(<void *> <uintptr_t> src, old_length, new_length, flags,
                          <void *> <uintptr_t> dst)
    if result == MAP_FAILED:
        raise _failed("mremap", errno)
    return <uintptr_t> result


def madvise(uint64_t address, uint64_t length, int advice):
    """madvise(2)."""
    cdef int result
    with nogil:
        result = c_madvise(<void *> <uintptr_t> address, length, advice)
    if result:
        raise _failed("madvise", errno)


def populate_write(uint64_t address, uint64_t length):
    """madvise(2) with MADV_POPULATE_WRITE; return the page faults that it took.

    Counted around the call itself, because after a fork the interpreter's own pages fault too.
    """
    cdef rusage before, after
    cdef int result
    with nogil:
        # The first call brings in the stack that the second will use.
        getrusage(RUSAGE_THREAD, &after)
        getrusage(RUSAGE_THREAD, &before)
        result = c_madvise(<void *> <uintptr_t> address, length, MADV_POPULATE_WRITE)
        if result == 0:
            getrusage(RUSAGE_THREAD, &after)
    if result:
        raise _failed("madvise(MADV_POPULATE_WRITE)", errno)
    return after.ru_minflt - before.ru_minflt + after.ru_majflt - before.ru_majflt


def mprotect(uint64_t address, uint64_t length, int prot):
    """mprotect(2)."""
    cdef int result
    with nogil:
        result = c_mprotect(<void *> <uintptr_t> address, length, prot)
    if result:
        raise _failed("mprotect", errno)


def mincore(uint64_t address, uint64_t length):
    """mincore(2); return one byte a page, 1 where the page is in memory."""
    cdef size_t pages = (length + _PAGE_SIZE - 1) // _PAGE_SIZE
    cdef bytes vector = PyBytes_FromStringAndSize(NULL, pages)
    cdef unsigned char *data = <unsigned char *> PyBytes_AsString(vector)
    cdef int result
    with nogil:
        result = c_mincore(<void *> <uintptr_t> address, length, data)
    if result:
        raise _failed("mincore", errno)
    return vector


def set_vma_name(uint64_t address, uint64_t length, bytes name):
    """prctl(PR_SET_VMA_ANON_NAME); EINVAL on kernels built without CONFIG_ANON_VMA_NAME."""
    cdef const char *text = name
    cdef int result
    with nogil:
        result = prctl(PM_PR_SET_VMA, <unsigned long> PM_PR_SET_VMA_ANON_NAME,
                       <unsigned long> address, <unsigned long> length, <unsigned long> text)
    if result:
        raise _failed("prctl(PR_SET_VMA)", errno)


def pagemap_scan(int fd, uint64_t start, uint64_t end, uint64_t anyof, uint64_t wanted=0,
                 uint64_t returned=0):
    """PAGEMAP_SCAN on an open pagemap: list of (start, end, categories) that match.

    A page matches if it has one of the categories `anyof` and all of `wanted`; neighbours that
    agree in the categories `returned` come as one region.
    """
    cdef pm_scan_arg arg
    cdef pm_page_region *regions
    cdef long count
    cdef list found = []
    cdef uint64_t at = start
    cdef Py_ssize_t room = 1024
    regions = <pm_page_region *> malloc(room * sizeof(pm_page_region))
    if regions == NULL:
        raise MemoryError("no memory for 1024 page regions")
    try:
        while at < end:
            memset(&arg, 0, sizeof(arg))
            arg.size = sizeof(arg)
            arg.start = at
            arg.end = end
            arg.vec = <uint64_t> <uintptr_t> regions
            arg.vec_len = room
            arg.category_anyof_mask = anyof
            arg.category_mask = wanted
            arg.return_mask = returned
            with nogil:
                count = ioctl(fd, PM_PAGEMAP_SCAN, &arg)
            if count < 0:
                raise _failed("PAGEMAP_SCAN", errno)
            for i in range(count):
                found.append((regions[i].start, regions[i].end, regions[i].categories))
            at = arg.walk_end
    finally:
        free(regions)
    return found

"""userfaultfd(2) and its ioctls."""

from __future__ import annotations

from pagemove._native import calls
from pagemove.lowlevel.integers import integers


def userfaultfd(flags: int) -> int:
    """Open a userfaultfd with userfaultfd(2).

    Parameters
    ----------
    flags : int
        O_CLOEXEC, O_NONBLOCK, UFFD_USER_MODE_ONLY, or several of them.

    Returns
    -------
    int
        The descriptor. `api` has to be the first call on it.

    Raises
    ------
    OSError
        EINVAL for an unknown flag; EPERM without UFFD_USER_MODE_ONLY and without CAP_SYS_PTRACE, or
        where a seccomp filter refuses the call; ENOSYS where the kernel has none.

    Examples
    --------
    >>> import os
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> os.readlink(f"/proc/self/fd/{fd}")
    'anon_inode:[userfaultfd]'
    >>> os.close(fd)
    """
    return calls.userfaultfd(*integers("userfaultfd", flags))


def userfaultfd_new(device: int, flags: int) -> int:
    """Open a userfaultfd through /dev/userfaultfd: USERFAULTFD_IOC_NEW, Linux 6.1.

    Parameters
    ----------
    device : int
        A descriptor of /dev/userfaultfd. A process that may open that file gets kernel-mode faults
        too, without a capability.
    flags : int
        As for `userfaultfd`.

    Returns
    -------
    int
        The descriptor.

    Raises
    ------
    OSError
        EINVAL for an unknown flag; ENOTTY if `device` is something else.

    Examples
    --------
    >>> import os
    >>> from pagemove import lowlevel
    >>> path = "/dev/userfaultfd"
    >>> if os.access(path, os.R_OK | os.W_OK):
    ...     device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    ...     os.close(lowlevel.userfaultfd_new(device, os.O_CLOEXEC))
    ...     os.close(device)
    """
    return calls.userfaultfd_new(*integers("userfaultfd_new", device, flags))


def api(fd: int, features: int = 0) -> tuple[int, int]:
    """Enable features: UFFDIO_API, once for a descriptor, before anything else.

    Parameters
    ----------
    fd : int
        The userfaultfd.
    features : int
        What to enable of UFFD_FEATURE_*.

    Returns
    -------
    tuple of int
        The features that the kernel has, whatever was asked for, and the ioctls of the descriptor,
        as bits.

    Raises
    ------
    OSError
        EINVAL for a feature that the kernel lacks, and for a second call; EPERM for
        UFFD_FEATURE_EVENT_FORK without CAP_SYS_PTRACE.

    Examples
    --------
    >>> import os
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> features, ioctls = lowlevel.api(fd, lowlevel.UFFD_FEATURE_EVENT_UNMAP)
    >>> bool(features & lowlevel.UFFD_FEATURE_MOVE)
    True
    >>> os.close(fd)
    """
    return calls.api(*integers("api", fd, features))


def register(fd: int, start: int, length: int, mode: int) -> int:
    """Register a range: UFFDIO_REGISTER. Its faults are reported, and the ioctls work in it.

    Parameters
    ----------
    fd : int
        The userfaultfd.
    start, length : int
        Whole pages that are mapped.
    mode : int
        What is reported: one or more of UFFDIO_REGISTER_MODE_*. MODE_WP alone makes the range a
        destination of `move`, while missing pages are still filled by the kernel.

    Returns
    -------
    int
        The ioctls that work in the range, as bits.

    Raises
    ------
    OSError
        EINVAL for a range that is not aligned, not mapped, or of a kind that `mode` does not know;
        EBUSY where another userfaultfd has it.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> ioctls = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_WP)
    >>> bool(ioctls & 1 << 5)  # _UFFDIO_MOVE
    True
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(fd)
    """
    return calls.register(*integers("register", fd, start, length, mode))


def unregister(fd: int, start: int, length: int) -> None:
    """End the registration of a range: UFFDIO_UNREGISTER. Threads that wait there get zero pages.

    It walks the page tables of the range: about 1 ms for 32 MiB that are populated.

    Parameters
    ----------
    fd : int
        The userfaultfd.
    start, length : int
        Whole pages.

    Raises
    ------
    OSError
        EINVAL for a range that is not aligned, or not mapped.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
    >>> lowlevel.unregister(fd, area, PAGESIZE)
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(fd)
    """
    calls.unregister(*integers("unregister", fd, start, length))


def wake(fd: int, start: int, length: int) -> None:
    """Wake the threads that wait for a page of the range: UFFDIO_WAKE. They touch it again.

    Parameters
    ----------
    fd : int
        The userfaultfd.
    start, length : int
        Whole pages.

    Raises
    ------
    OSError
        EINVAL for a range that is not aligned.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
    >>> lowlevel.zeropage(fd, area, PAGESIZE, lowlevel.UFFDIO_ZEROPAGE_MODE_DONTWAKE) == PAGESIZE
    True
    >>> lowlevel.wake(fd, area, PAGESIZE)
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(fd)
    """
    calls.wake(*integers("wake", fd, start, length))


def copy(fd: int, dst: int, src: int, length: int, mode: int = 0) -> int:
    """Fill missing pages with a copy: UFFDIO_COPY.

    Parameters
    ----------
    fd : int
        The userfaultfd with which the destination is registered. It may be another process's.
    dst : int
        Address of the missing pages.
    src : int
        Address of the bytes, in this process. It need not be aligned.
    length : int
        Bytes, whole pages.
    mode : int
        UFFDIO_COPY_MODE_DONTWAKE, UFFDIO_COPY_MODE_WP.

    Returns
    -------
    int
        Bytes copied: fewer than `length` where something stopped it on the way.

    Raises
    ------
    OSError
        EEXIST where a page is present already; EAGAIN while mappings change; ENOENT where the
        destination is not registered; ESRCH where its process has ended; EFAULT for a
        source that cannot be read.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> import numpy as np
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
    >>> page = np.full(PAGESIZE, 7, np.uint8)
    >>> lowlevel.copy(fd, area, page.ctypes.data, PAGESIZE) == PAGESIZE
    True
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(fd)
    """
    return calls.copy(*integers("copy", fd, dst, src, length, mode))


def zeropage(fd: int, start: int, length: int, mode: int = 0) -> int:
    """Map the zero page over missing pages: UFFDIO_ZEROPAGE.

    Parameters
    ----------
    fd : int
        The userfaultfd with which the range is registered.
    start, length : int
        Whole pages that are missing.
    mode : int
        UFFDIO_ZEROPAGE_MODE_DONTWAKE.

    Returns
    -------
    int
        Bytes mapped: fewer than `length` where something stopped it on the way.

    Raises
    ------
    OSError
        EEXIST where a page is present already; EAGAIN while mappings change; ENOENT where the range
        is not registered; EINVAL for hugetlb.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
    >>> lowlevel.zeropage(fd, area, PAGESIZE) == PAGESIZE
    True
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(fd)
    """
    return calls.zeropage(*integers("zeropage", fd, start, length, mode))


def move(fd: int, dst: int, src: int, length: int, mode: int = 0) -> int:
    r"""Move pages: UFFDIO_MOVE as the kernel has it, defects included. Linux 6.8.

    Parameters
    ----------
    fd : int
        The userfaultfd of this process with which the destination is registered.
    dst, src : int
        Addresses of whole pages in private anonymous memory, writable on both sides.
    length : int
        Bytes, whole pages.
    mode : int
        UFFDIO_MOVE_MODE_DONTWAKE, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES.

    Returns
    -------
    int
        Bytes that the kernel says it moved: fewer than `length` where something stopped it.

    Raises
    ------
    OSError
        EEXIST for a page in the destination; ENOENT for a hole in the source, or a start not
        mapped; EBUSY for a page that is shared or pinned; EAGAIN while mappings change; EINVAL for
        mappings that do not allow it.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> both = 2 * PAGESIZE
    >>> area = lowlevel.mmap(0, both, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, both, lowlevel.UFFDIO_REGISTER_MODE_WP)
    >>> lowlevel.madvise(area, PAGESIZE, lowlevel.MADV_POPULATE_WRITE)
    >>> lowlevel.move(fd, area + PAGESIZE, area, PAGESIZE) == PAGESIZE
    True
    >>> lowlevel.mincore(area, both)
    b'\x00\x01'
    >>> lowlevel.munmap(area, both)
    >>> os.close(fd)
    """
    return calls.move(*integers("move", fd, dst, src, length, mode))


def writeprotect(fd: int, start: int, length: int, mode: int) -> None:
    """Protect pages against writes, or lift that: UFFDIO_WRITEPROTECT.

    Parameters
    ----------
    fd : int
        The userfaultfd with which the range is registered, with UFFDIO_REGISTER_MODE_WP.
    start, length : int
        Whole pages.
    mode : int
        UFFDIO_WRITEPROTECT_MODE_WP protects; 0 lifts the protection and wakes who waits, unless
        UFFDIO_WRITEPROTECT_MODE_DONTWAKE is set.

    Raises
    ------
    OSError
        ENOENT where the range is not registered so; EAGAIN while mappings change; EINVAL for a
        range that is not aligned.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_WP)
    >>> lowlevel.writeprotect(fd, area, PAGESIZE, lowlevel.UFFDIO_WRITEPROTECT_MODE_WP)
    >>> lowlevel.writeprotect(fd, area, PAGESIZE, 0)
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(fd)
    """
    calls.writeprotect(*integers("writeprotect", fd, start, length, mode))


def continue_(fd: int, start: int, length: int, mode: int = 0) -> int:
    """Map pages that the page cache holds already: UFFDIO_CONTINUE.

    Parameters
    ----------
    fd : int
        The userfaultfd with which the range is registered, with UFFDIO_REGISTER_MODE_MINOR.
    start, length : int
        Whole pages of shared memory or hugetlbfs.
    mode : int
        1 leaves waiting threads asleep, 2 maps the pages write-protected.

    Returns
    -------
    int
        Bytes mapped: fewer than `length` where something stopped it on the way.

    Raises
    ------
    OSError
        EEXIST where a page is mapped already; EFAULT where the page cache has none; EAGAIN while
        mappings change; ENOENT where the range is not registered.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_SHARED, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd, lowlevel.UFFD_FEATURE_MINOR_SHMEM)
    >>> shared = os.memfd_create("example")
    >>> os.write(shared, bytes(PAGESIZE)) == PAGESIZE
    True
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_SHARED, shared)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_MINOR)
    >>> lowlevel.continue_(fd, area, PAGESIZE) == PAGESIZE
    True
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(shared)
    >>> os.close(fd)
    """
    return calls.continue_(*integers("continue_", fd, start, length, mode))


def poison(fd: int, start: int, length: int, mode: int = 0) -> int:
    """Make an access to missing pages raise SIGBUS: UFFDIO_POISON. Linux 6.6.

    Parameters
    ----------
    fd : int
        The userfaultfd with which the range is registered.
    start, length : int
        Whole pages that are missing.
    mode : int
        1 leaves waiting threads asleep.

    Returns
    -------
    int
        Bytes poisoned: fewer than `length` where something stopped it on the way.

    Raises
    ------
    OSError
        EEXIST where a page is present already; EAGAIN while mappings change; ENOENT where the range
        is not registered.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
    >>> lowlevel.poison(fd, area, PAGESIZE) == PAGESIZE
    True
    >>> lowlevel.munmap(area, PAGESIZE)
    >>> os.close(fd)
    """
    return calls.poison(*integers("poison", fd, start, length, mode))


def read_events(fd: int, most: int = 16) -> list[tuple[int, int, int, int]]:
    """Read events that wait, as `struct uffd_msg` has them.

    Parameters
    ----------
    fd : int
        The userfaultfd. Without O_NONBLOCK the call waits for the first event.
    most : int
        How many to read at most, 1 to 64.

    Returns
    -------
    list of tuple of int
        Of each event its kind (UFFD_EVENT_*) and three words: for a page fault the flags, the
        address and the thread id; for a fork the new descriptor; for remap, remove and unmap the
        addresses. Empty where O_NONBLOCK is set and nothing waits.

    Raises
    ------
    ValueError
        `most` is out of range.
    OSError
        EINVAL before `api`.

    Examples
    --------
    >>> import os, select, threading
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | lowlevel.UFFD_USER_MODE_ONLY)
    >>> _ = lowlevel.api(fd, lowlevel.UFFD_FEATURE_EVENT_UNMAP)
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> _ = lowlevel.register(fd, area, PAGESIZE, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
    >>> lowlevel.read_events(fd)
    []
    >>> unmapping = threading.Thread(target=lowlevel.munmap, args=(area, PAGESIZE))
    >>> unmapping.start()  # waits until its event is read
    >>> _ = select.select([fd], [], [])
    >>> events = lowlevel.read_events(fd)
    >>> events == [(lowlevel.UFFD_EVENT_UNMAP, area, area + PAGESIZE, 0)]
    True
    >>> unmapping.join()
    >>> os.close(fd)
    """
    return calls.read_events(*integers("read_events", fd, most))

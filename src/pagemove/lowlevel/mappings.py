"""The calls on mappings: mmap(2) and its relatives, and PAGEMAP_SCAN."""

from __future__ import annotations

from pagemove._native import calls
from pagemove.lowlevel.integers import integers


def mmap(address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Map memory: mmap(2).

    Parameters
    ----------
    address : int
        Where to map: a wish, or an order with MAP_FIXED and MAP_FIXED_NOREPLACE; 0 leaves it to the
        kernel.
    length : int
        Bytes.
    prot, flags : int
        PROT_* and MAP_* of Python's `mmap`, and MAP_FIXED_NOREPLACE.
    fd, offset : int
        The file, and where in it the mapping begins; -1 with MAP_ANONYMOUS.

    Returns
    -------
    int
        The address. Nothing unmaps it when it is forgotten.

    Raises
    ------
    OSError
        EINVAL, ENOMEM, EEXIST (MAP_FIXED_NOREPLACE) and others, as in mmap(2).

    Examples
    --------
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> area % PAGESIZE
    0
    >>> lowlevel.munmap(area, PAGESIZE)
    """
    return calls.mmap(*integers("mmap", address, length, prot, flags, fd, offset))


def munmap(address: int, length: int) -> None:
    """Remove mappings: munmap(2). Threads that wait there for a userfaultfd stay asleep: `wake`.

    Parameters
    ----------
    address, length : int
        The range. All of it goes, whosever it is.

    Raises
    ------
    OSError
        EINVAL for an address that is not aligned, or a length of 0; ENOMEM where a mapping would be
        cut in two and the process has as many as it may.

    Examples
    --------
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ
    >>> from pagemove import lowlevel
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> lowlevel.munmap(area, PAGESIZE)
    """
    calls.munmap(*integers("munmap", address, length))


def mremap(src: int, old_length: int, new_length: int, flags: int, dst: int = 0) -> int:
    """Move a mapping, or change its length: mremap(2).

    Parameters
    ----------
    src, old_length : int
        The mapping.
    new_length : int
        Its length afterwards.
    flags : int
        MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP.
    dst : int
        Where to, with MREMAP_FIXED. What is there is unmapped.

    Returns
    -------
    int
        The address afterwards.

    Raises
    ------
    OSError
        EFAULT where nothing is mapped; EINVAL for flags or addresses that do not go together;
        ENOMEM where it cannot grow, or the process has as many mappings as it may.

    Examples
    --------
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> longer = lowlevel.mremap(area, PAGESIZE, 8 * PAGESIZE, lowlevel.MREMAP_MAYMOVE)
    >>> lowlevel.munmap(longer, 8 * PAGESIZE)
    """
    return calls.mremap(*integers("mremap", src, old_length, new_length, flags, dst))


def madvise(address: int, length: int, advice: int) -> None:
    r"""Advise the kernel about a range: madvise(2).

    Parameters
    ----------
    address, length : int
        The range.
    advice : int
        MADV_* of Python's `mmap`, and those that it lacks.

    Raises
    ------
    OSError
        EINVAL for an advice that the kernel does not know, or that this mapping does not take;
        ENOMEM where a part is not mapped; EFAULT for MADV_POPULATE_* if a page cannot be read.

    Examples
    --------
    >>> from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> lowlevel.madvise(area, PAGESIZE, lowlevel.MADV_POPULATE_WRITE)
    >>> lowlevel.mincore(area, PAGESIZE)
    b'\x01'
    >>> lowlevel.madvise(area, PAGESIZE, MADV_DONTNEED)
    >>> lowlevel.mincore(area, PAGESIZE)
    b'\x00'
    >>> lowlevel.munmap(area, PAGESIZE)
    """
    calls.madvise(*integers("madvise", address, length, advice))


def mprotect(address: int, length: int, prot: int) -> None:
    """Change the protection of a range: mprotect(2). A part of a mapping becomes one of its own.

    Parameters
    ----------
    address, length : int
        The range.
    prot : int
        PROT_* of Python's `mmap`.

    Raises
    ------
    OSError
        EACCES where the file does not allow it; EINVAL for an address that is not aligned; ENOMEM
        where a part is not mapped, or the process has as many mappings as it may.

    Examples
    --------
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> lowlevel.mprotect(area, PAGESIZE, PROT_READ)
    >>> lowlevel.munmap(area, PAGESIZE)
    """
    calls.mprotect(*integers("mprotect", address, length, prot))


def mincore(address: int, length: int) -> bytes:
    r"""Return which pages are in memory: mincore(2).

    Parameters
    ----------
    address, length : int
        The range.

    Returns
    -------
    bytes
        One byte a page, 1 where it is in memory. Of anonymous memory a page in swap counts where
        the swap cache has it.

    Raises
    ------
    OSError
        ENOMEM where a part is not mapped; EINVAL for an address that is not aligned.

    Examples
    --------
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ
    >>> from pagemove import lowlevel
    >>> area = lowlevel.mmap(0, 2 * PAGESIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> lowlevel.mincore(area, 2 * PAGESIZE)
    b'\x00\x00'
    >>> lowlevel.munmap(area, 2 * PAGESIZE)
    """
    return calls.mincore(*integers("mincore", address, length))


def set_vma_name(address: int, length: int, name: bytes) -> None:
    r"""Name anonymous mappings in /proc/self/maps: prctl(2) with PR_SET_VMA_ANON_NAME. Linux 5.17.

    Parameters
    ----------
    address, length : int
        The range. A part of a mapping becomes one of its own.
    name : bytes
        Up to 79 printable characters of ASCII, without any of ``\ ` $ [ ]``.

    Raises
    ------
    OSError
        EINVAL for a name that is not allowed, and on kernels built without CONFIG_ANON_VMA_NAME;
        ENOMEM where a part is not mapped; EBADF where one is of a file.

    Examples
    --------
    >>> import contextlib
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ
    >>> from pagemove import lowlevel
    >>> area = lowlevel.mmap(0, PAGESIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> with contextlib.suppress(OSError):
    ...     lowlevel.set_vma_name(area, PAGESIZE, b"example")
    >>> lowlevel.munmap(area, PAGESIZE)
    """
    calls.set_vma_name(*integers("set_vma_name", address, length, name))


def pagemap_scan(
    fd: int, start: int, end: int, anyof: int, wanted: int = 0, returned: int = 0
) -> list[tuple[int, int, int]]:
    """Return the regions whose pages are of some categories: the ioctl PAGEMAP_SCAN. Linux 6.7.

    Parameters
    ----------
    fd : int
        A descriptor of /proc/PID/pagemap.
    start, end : int
        The range, by addresses.
    anyof : int
        A page has to have one of these categories (PAGE_IS_*); 0 asks for none.
    wanted : int
        A page has to have all of these.
    returned : int
        Which categories are returned. Neighbours that agree in them are one region.

    Returns
    -------
    list of tuple of int
        Start, end and categories of each region, by address.

    Raises
    ------
    OSError
        ENOTTY where the kernel has no such ioctl; EINVAL for an unknown category, or an address
        that is not aligned.

    Examples
    --------
    >>> import os
    >>> from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
    >>> from pagemove import lowlevel
    >>> from pagemove.lowlevel import PAGE_IS_PRESENT
    >>> pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    >>> end = 4 * PAGESIZE
    >>> area = lowlevel.mmap(0, end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> lowlevel.madvise(area + PAGESIZE, PAGESIZE, lowlevel.MADV_POPULATE_WRITE)
    >>> found = lowlevel.pagemap_scan(
    ...     pagemap, area, area + end, PAGE_IS_PRESENT, returned=PAGE_IS_PRESENT
    ... )
    >>> found == [(area + PAGESIZE, area + 2 * PAGESIZE, PAGE_IS_PRESENT)]
    True
    >>> lowlevel.munmap(area, end)
    >>> os.close(pagemap)
    """
    return calls.pagemap_scan(*integers("pagemap_scan", fd, start, end, anyof, wanted, returned))

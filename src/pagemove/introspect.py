"""What this process has mapped, and the state of every page: /proc/self/smaps and pagemap.

Everything here only looks. Each call opens its file under /proc/self afresh, because a descriptor
that a fork has inherited goes on showing the parent.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemove import limits
from pagemove._native import calls
from pagemove._native.mapping import Hold

#: Bytes in a page.
PAGE_SIZE: int = os.sysconf("SC_PAGE_SIZE")


def _huge_page_size() -> int:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "rb") as size:
            return int(size.read())
    except OSError:
        return 0


#: Bytes in a transparent huge page; 0 on a kernel without them.
HUGE_PAGE_SIZE: int = _huge_page_size()

_PAGEMAP = "/proc/self/pagemap"
_CHUNK_PAGES = 1 << 15

# Documentation/admin-guide/mm/pagemap.rst: one 64-bit word a page.
_PM_EXCLUSIVE = 56
_PM_WRITE_PROTECTED = 57
_PM_GUARD = 58
_PM_SWAPPED = 62
_PM_PRESENT = 63

# Categories of the PAGEMAP_SCAN ioctl (Linux 6.7).
_SCAN_ZERO = 1 << 5
_SCAN_HUGE = 1 << 6

_READ_SIZE = 1 << 16
_SMAPS_RECORD = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ (\d+) *(.*)\n"
    rb"(?:[A-Za-z_]+:.*\n)*?VmFlags:(.*)\n",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping of this process (the kernel's `vm_area_struct`).

    Attributes
    ----------
    start, end : int
        Addresses: the mapping is ``[start, end)``.
    permissions : str
        As in /proc/self/maps, ``"rw-p"``: read, write, execute; `p` for private, `s` for shared.
    name : str
        A file's path, ``"[heap]"``, ``"[anon:NAME]"`` ..., or ``""``.
    flags : tuple of str
        The two-letter VmFlags of proc_pid_smaps(5): ``"lo"`` locked, ``"um"`` and ``"uw"`` known to
        a userfaultfd, ``"ht"`` hugetlb, ...
    inode : int
        The inode of the file behind it, 0 if there is none. Takes no part in comparisons.
    """

    start: int
    end: int
    permissions: str
    name: str
    flags: tuple[str, ...]
    inode: int = field(default=0, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    @property
    def anonymous(self) -> bool:
        """Whether this is private anonymous memory, the only kind whose pages can be moved.

        A private mapping of /dev/zero is; [vdso] and its like, which no file backs either, are not.
        """
        if self.permissions[3] != "p":
            return False
        if self.inode:
            return _is_dev_zero(self.name, self.inode)
        ordinary = self.name in ("", "[heap]", "[stack]") or self.name.startswith("[anon:")
        return ordinary and not {"io", "pf", "ht"}.intersection(self.flags)


def _is_dev_zero(path: str, inode: int) -> bool:
    # By device number, not by path: /dev/zero may lie elsewhere after a chroot or a bind mount.
    if not path.endswith("/zero"):
        return False
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (
        stat.S_ISCHR(status.st_mode)
        and status.st_rdev == os.makedev(1, 5)
        and status.st_ino == inode
    )


def open_proc(name: str) -> FileIO:
    """Open a file of /proc/self; where that fails, the `OSError` says what to do about it."""
    try:
        return FileIO(f"/proc/self/{name}")
    except OSError as error:
        remedy = {
            errno.ENOENT: "mount procfs on /proc for this PID namespace "
            "(mount -t proc proc /proc); the kernel needs CONFIG_PROC_PAGE_MONITOR",
            errno.EACCES: "the process is not dumpable (it changed its user id, or called "
            "prctl(PR_SET_DUMPABLE, 0)): call prctl(PR_SET_DUMPABLE, 1), or run it as its own user",
            errno.EPERM: "a security policy denies it: allow reading /proc/self in it",
            errno.EMFILE: "close descriptors, or raise the limit",
        }.get(error.errno or 0, "make /proc/self readable for this process")
        message = f"cannot open /proc/self/{name}: {error.strerror}; {remedy}"
        raise limits.explain(OSError(error.errno, message)) from error


def _read_vmas(smaps: FileIO) -> Iterator[Vma]:
    text = b""
    while piece := smaps.read(_READ_SIZE):
        text += piece
        done = 0
        for record in _SMAPS_RECORD.finditer(text):
            start, end, permissions, inode, name, flags = record.groups()
            done = record.end()
            yield Vma(
                int(start, 16),
                int(end, 16),
                permissions.decode(),
                os.fsdecode(name),
                tuple(flags.decode().split()),
                int(inode),
            )
        text = text[done:]


def vmas() -> list[Vma]:
    r"""List the mappings of this process with their flags, in address order.

    Returns
    -------
    list of Vma
        Each mapping is shown as it was at one moment; the list as a whole is not one moment, if
        other threads map and unmap meanwhile.

    Raises
    ------
    OSError
        /proc/self/smaps cannot be read; the message says what to do.

    Notes
    -----
    The kernel walks all page tables of the process for it: milliseconds for each GiB resident.
    Source: proc_pid_smaps(5). A newline in a file's name is shown as ``\012``.

    Examples
    --------
    >>> import pagemove
    >>> any(vma.name == "[stack]" for vma in pagemove.vmas())
    True
    """
    with open_proc("smaps") as smaps:
        return sorted(_read_vmas(smaps), key=lambda vma: vma.start)


def find_vma(address: int) -> Vma | None:
    """Return the mapping that contains `address`, or None; reads only as far as that."""
    with open_proc("smaps") as smaps:
        for vma in _read_vmas(smaps):
            if vma.end > address:
                return vma if vma.start <= address else None
    return None


def count_vmas() -> int:
    """Count the mappings of this process, without their flags: microseconds for a hundred."""
    count = 0
    with open_proc("maps") as maps:
        while piece := maps.read(_READ_SIZE):
            count += piece.count(b"\n")
    return count


class PageState(enum.IntFlag):
    """What the page table says of one page.

    No flag at all means a hole: nothing is mapped there, or nothing was ever touched.
    """

    #: A page is there.
    PRESENT = 1
    #: The page is in swap. A marker without a page (poison, write protection of a hole) shows so
    #: too, and on Linux 6.13 and 6.14 a guard page.
    SWAPPED = 2
    #: The page is the kernel's shared page of zeros: read, never written (Linux 6.7; for huge ones
    #: 6.12.36, 6.15.5, 6.16).
    ZERO = 4
    #: The page is part of a huge page, mapped as one (Linux 6.7).
    HUGE = 8
    #: Mapped once. Not a promise that it can move: see `pagemove.unshare`.
    EXCLUSIVE = 16
    #: Write-protected by a userfaultfd.
    WRITE_PROTECTED = 32
    #: A guard page (madvise(2), MADV_GUARD_INSTALL); never also SWAPPED (Linux 6.15).
    GUARD = 64

    @classmethod
    def _missing_(cls, value: object) -> Any:
        # A word out of `page_states` is NumPy's integer, which enum takes for no integer at all.
        return super()._missing_(int(value) if isinstance(value, np.integer) else value)


def page_states(buffer: object) -> npt.NDArray[np.uint16]:
    """Return the state of every page that a buffer touches.

    Parameters
    ----------
    buffer : object
        Anything with a C-contiguous buffer: a `Memory`, an array, `bytes`.

    Returns
    -------
    numpy.ndarray
        dtype uint16, one word of `PageState` flags for each page, from the page with the buffer's
        first byte to the page with its last; empty for an empty buffer.

    Raises
    ------
    TypeError
        No C-contiguous buffer.
    OSError
        /proc/self/pagemap cannot be read; the message says what to do.

    Notes
    -----
    Looking changes nothing, but other threads may: what is returned was true a moment ago, and
    ZERO and HUGE come from a second look. Costs about 10 ns a resident page. Needs no privilege.
    Source: proc_pid_pagemap(5), PAGEMAP_SCAN in the kernel's admin-guide/mm/pagemap.

    Examples
    --------
    >>> import pagemove
    >>> with pagemove.Memory(2 * pagemove.PAGE_SIZE) as memory:
    ...     memoryview(memory)[0] = 1
    ...     [pagemove.PageState.PRESENT in pagemove.PageState(w) for w in memory.page_states()]
    [True, False]
    """
    with Hold(buffer) as hold:
        if not hold.nbytes:
            return np.zeros(0, np.uint16)
        first = hold.address // PAGE_SIZE
        last = (hold.address + hold.nbytes - 1) // PAGE_SIZE
        return states_at(first * PAGE_SIZE, last - first + 1)


def states_at(address: int, pages: int) -> npt.NDArray[np.uint16]:
    """Return the states of `pages` pages from a page-aligned `address`; unmapped ones are 0."""
    states = np.zeros(pages, np.uint16)
    with open_proc("pagemap") as pagemap:
        for first in range(0, pages, _CHUNK_PAGES):
            part = states[first : first + _CHUNK_PAGES]
            _fill_states(pagemap.fileno(), address + first * PAGE_SIZE, part)
    return states


def _fill_states(pagemap: int, address: int, states: npt.NDArray[np.uint16]) -> None:
    raw = memoryview(bytearray(8 * len(states)))
    got = 0
    while more := os.preadv(pagemap, [raw[got:]], address // PAGE_SIZE * 8 + got):
        got += more
    words = np.frombuffer(raw, np.uint64)

    def bit(number: int, state: PageState) -> npt.NDArray[np.uint16]:
        return ((words >> np.uint64(number)) & np.uint64(1)).astype(np.uint16) * np.uint16(state)

    states |= bit(_PM_PRESENT, PageState.PRESENT)
    states |= bit(_PM_SWAPPED, PageState.SWAPPED)
    states |= bit(_PM_WRITE_PROTECTED, PageState.WRITE_PROTECTED)
    states |= bit(_PM_GUARD, PageState.GUARD)
    states |= bit(_PM_EXCLUSIVE, PageState.EXCLUSIVE)
    states[(states & PageState.GUARD) != 0] &= ~np.uint16(PageState.SWAPPED)
    present = (states & PageState.PRESENT) != 0
    states[~present] &= ~np.uint16(PageState.EXCLUSIVE)
    if present.any():
        _add_scanned(pagemap, address, states, present)


def _add_scanned(
    pagemap: int,
    address: int,
    states: npt.NDArray[np.uint16],
    present: npt.NDArray[np.bool_],
) -> None:
    end = address + len(states) * PAGE_SIZE
    mask = _SCAN_ZERO | _SCAN_HUGE
    found: list[tuple[int, int, int]] = []
    # A kernel before 6.7 does not know the ioctl; it has no UFFDIO_MOVE either.
    with contextlib.suppress(OSError):
        found = calls.pagemap_scan(pagemap, address, end, mask, 0, mask)
    if not found:
        return
    regions = np.array(found, np.uint64)
    starts = (regions[:, 0] - np.uint64(address)) // np.uint64(PAGE_SIZE)
    ends = (regions[:, 1] - np.uint64(address)) // np.uint64(PAGE_SIZE)
    lengths = (ends - starts).astype(np.int64)
    before = np.cumsum(lengths) - lengths
    page = np.repeat(starts.astype(np.int64) - before, lengths) + np.arange(lengths.sum())
    categories = regions[:, 2]
    zero = np.where(categories & np.uint64(_SCAN_ZERO), PageState.ZERO, 0)
    huge = np.where(categories & np.uint64(_SCAN_HUGE), PageState.HUGE, 0)
    flags = np.repeat((zero | huge).astype(np.uint16), lengths)
    states[page] |= np.where(present[page], flags, 0).astype(np.uint16)

"""Who owns anonymous memory: `Memory`, and `empty` for those who want an array."""

from __future__ import annotations

import contextlib
import math
import mmap as _mmap
import operator
import warnings
import weakref
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from pagemove import limits, lowlevel
from pagemove._native.mapping import Mapping
from pagemove.arguments import checked_name, whole_number
from pagemove.introspect import HUGE_PAGE_SIZE, PAGE_SIZE, page_states
from pagemove.registration import register
from pagemove.views import Viewable, owner_behind

_LARGEST = 2**63 - 1

_live: weakref.WeakSet[Memory] = weakref.WeakSet()


class Memory(Mapping, Viewable):
    """Private anonymous memory that pages can be moved into and out of.

    Page aligned, 2 MiB aligned from 2 MiB up, zero until written. A child made by fork does not
    inherit it. It has the buffer protocol, so `memoryview`, `numpy.frombuffer` and system calls
    take it.

    Parameters
    ----------
    nbytes : int
        Length in bytes, rounded up to whole pages.
    huge_pages : bool
        Ask for transparent huge pages. Without it there are none, so that moving one page never
        has to split one (about 300 times the cost of the move).
    name : str, optional
        Shown as ``[anon:name]`` in /proc/self/maps where the kernel has CONFIG_ANON_VMA_NAME.

    Raises
    ------
    ValueError
        `nbytes` is 0 or less; `name` has characters the kernel refuses.
    MemoryError
        The address space, its limits or vm.max_map_count do not allow so much; the message names
        those that are set, and how to raise them.

    Notes
    -----
    Costs an mmap(2), two or three madvise(2), one UFFDIO_REGISTER: some 10 microseconds. Memory is
    committed page by page on first touch. Where userfaultfd is not permitted it is memory all the
    same, and moving raises `UnsupportedError`.

    Examples
    --------
    >>> import pagemove
    >>> with pagemove.Memory(100_000) as memory:
    ...     memory.nbytes % pagemove.PAGE_SIZE
    0
    """

    def __init__(
        self, nbytes: SupportsIndex, *, huge_pages: bool = False, name: str | None = None
    ) -> None:
        asked = whole_number(nbytes, "nbytes")
        if asked <= 0:
            raise ValueError(f"nbytes must be positive, not {asked}")
        if asked > _LARGEST - 2 * PAGE_SIZE:
            raise MemoryError(f"cannot map {asked} bytes: larger than any address space")
        label = checked_name(name)
        length = -(-asked // PAGE_SIZE) * PAGE_SIZE
        aligned_huge = HUGE_PAGE_SIZE and length >= HUGE_PAGE_SIZE
        with limits.named():
            self._map(length, HUGE_PAGE_SIZE if aligned_huge else PAGE_SIZE)
        self._array_nbytes = 0  # of the one array that `empty` has made in it
        advice = _mmap.MADV_HUGEPAGE if huge_pages else _mmap.MADV_NOHUGEPAGE
        with contextlib.suppress(OSError):  # EINVAL: a kernel without THP
            lowlevel.madvise(self.address, length, advice)
        with contextlib.suppress(OSError):  # EINVAL: a kernel without CONFIG_ANON_VMA_NAME
            lowlevel.set_vma_name(self.address, length, label)
        # Where userfaultfd is refused the first move says so; as memory it is good without.
        with contextlib.suppress(OSError):
            register(self.address, length)
        _live.add(self)

    def __dir__(self) -> list[str]:
        # For completion: what only the library asks of a mapping is left out.
        return sorted(set(super().__dir__()) - {"inherited"})

    def page_states(self) -> npt.NDArray[np.uint16]:
        """Return one `PageState` word a page; see `pagemove.page_states`.

        Returns
        -------
        numpy.ndarray
            Of uint16, one for each page.

        Raises
        ------
        ValueError
            The memory is closed.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.Memory(2 * pagemove.PAGE_SIZE) as memory:
        ...     memory.asarray(int)[0] = 1
        ...     (memory.page_states() != 0).tolist()
        [True, False]
        """
        return page_states(self)

    def discard(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> None:
        """Discard pages, so that they are holes and read as zeros.

        Parameters
        ----------
        offset, length : int
            Bytes, whole pages; by default all of the memory.

        Raises
        ------
        ValueError
            Not whole pages, or not within the memory.

        Notes
        -----
        madvise(2) with MADV_DONTNEED: about 0.1 microseconds a page, plus a TLB shootdown.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.Memory(pagemove.PAGE_SIZE) as memory:
        ...     memory.asarray(int)[0] = 1
        ...     memory.discard()
        ...     int(memory.asarray(int)[0])
        0
        """
        start = whole_number(offset, "offset")
        count = self.nbytes - start if length is None else whole_number(length, "length")
        if start % PAGE_SIZE or count % PAGE_SIZE:
            raise ValueError(
                f"offset {start} and length {count} must be whole {PAGE_SIZE}-byte pages"
            )
        if start < 0 or count < 0 or start + count > self.nbytes:
            raise ValueError(
                f"bytes {start} to {start + count} are not within the {self.nbytes} of the memory"
            )
        with memoryview(self):
            lowlevel.madvise(self.address + start, count, _mmap.MADV_DONTNEED)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.inherited:
            return "<Memory of the parent process>"
        if self.closed:
            return "<closed Memory>"
        return f"<Memory of {self.nbytes} bytes at {self.address:#x}>"

    def __del__(self) -> None:
        if not self.closed and not self._array_nbytes:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)


def empty(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike = float, *, huge_pages: bool = False
) -> npt.NDArray[Any]:
    """Make an array in memory of its own, whose pages can be moved.

    Parameters
    ----------
    shape : int or tuple of int
        As for `numpy.empty`. The first item is at the start of a page.
    dtype : dtype
        Any but those that hold Python objects.
    huge_pages : bool
        As for `Memory`.

    Returns
    -------
    numpy.ndarray
        C-contiguous, writable, zero until written. The memory goes when the array does.

    Raises
    ------
    ValueError
        A negative dimension.
    TypeError
        `dtype` holds Python objects.
    MemoryError
        As for `Memory`.

    Notes
    -----
    Two of them of equal `nbytes` can be passed to `move` whole, the partial last page included,
    for nothing else is in that page.

    Examples
    --------
    >>> import pagemove
    >>> a, b = pagemove.empty((3, 1000)), pagemove.empty((3, 1000))
    >>> a[:] = 7
    >>> pagemove.move(b, a)
    24576
    >>> float(b.min()), float(a.max())
    (7.0, 0.0)
    """
    kind = np.dtype(dtype)
    sizes = tuple(map(operator.index, shape if isinstance(shape, tuple | list) else (shape,)))
    if min(sizes, default=0) < 0:
        raise ValueError(f"negative dimension in shape {shape}")
    nbytes = kind.itemsize * math.prod(sizes)
    memory = Memory(max(nbytes, 1), huge_pages=huge_pages)
    memory._array_nbytes = max(nbytes, 1)
    return memory.asarray(kind, sizes)


def owner_of(buffer: object) -> Memory | None:
    """Find the `Memory` whose bytes an array, a view or a memoryview shows, if any."""
    return owner_behind(buffer, Memory)


def owner_at(address: int, length: int) -> Memory | None:
    """Find a live `Memory` that has a byte of the range."""
    for memory in list(_live):
        if not memory.closed:
            start = memory.address
            if start < address + length and address < start + memory.nbytes:
                return memory
    return None


def spare_tail(buffer: object, end: int) -> int:
    """Bytes after `end` up to the page boundary that belong to nothing but this buffer.

    An array made by `empty` ends somewhere in its last page; nothing else is there. `end` is the
    address after the buffer's last byte.
    """
    memory = owner_of(buffer)
    if memory is None or memory.closed or not memory._array_nbytes:
        return 0
    if end != memory.address + memory._array_nbytes:
        return 0
    return -end % PAGE_SIZE

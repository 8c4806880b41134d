"""Private anonymous memory that the library has never seen."""

from __future__ import annotations

import mmap
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pagemove import PAGE_SIZE, PageState, lowlevel
from support import pages as _pages
from support import system

PROT_NONE = 0
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_FIXED = 0x10


class Area:
    """One mapping of whole pages between two gaps that nobody can touch.

    The gaps keep it apart: the kernel merges like neighbours into one mapping, and then a test
    would see the neighbours' fate. `close` unmaps everything but what `unmap` took before.
    """

    def __init__(
        self,
        pages: int,
        *,
        protection: int = READ_WRITE,
        flags: int = PRIVATE,
        fd: int = -1,
        align: int = PAGE_SIZE,
        gap: int | None = None,
    ) -> None:
        margin = max(align, PAGE_SIZE) if gap is None else gap
        self.nbytes = pages * PAGE_SIZE
        self._length = self.nbytes + 2 * margin + align - PAGE_SIZE
        self._reserved = lowlevel.mmap(0, self._length, PROT_NONE, PRIVATE)
        self._gone: list[tuple[int, int]] = []
        self.address = -(-(self._reserved + margin) // align) * align
        try:
            lowlevel.mmap(self.address, self.nbytes, protection, flags | MAP_FIXED, fd)
        except OSError:
            self.close()
            raise

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return self.nbytes // PAGE_SIZE

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.address + self.nbytes

    def page(self, number: int) -> int:
        """Return the address of a page."""
        return self.address + number * PAGE_SIZE

    def array(self) -> npt.NDArray[np.uint8]:
        """View it as bytes, without keeping it alive."""
        return _pages.at(self.address, self.nbytes)

    def fill(self, tag: int = 0) -> bytes:
        """Write a pattern of its own into each page; return all of it."""
        return _pages.write_all(self.address, self.pages, tag)

    def contents(self) -> bytes:
        """Copy all bytes; holes get the zero page by it."""
        return _pages.read(self.address, self.nbytes)

    def states(self) -> list[PageState]:
        """List the states of its pages."""
        return _pages.states(self.address, self.pages)

    def advise(self, advice: int, first: int = 0, pages: int | None = None) -> None:
        """madvise(2) on all of it, or on `pages` pages from `first` on."""
        count = self.pages - first if pages is None else pages
        lowlevel.madvise(self.page(first), count * PAGE_SIZE, advice)

    def page_out(self, first: int = 0, pages: int | None = None) -> None:
        """Swap its pages out."""
        count = self.pages - first if pages is None else pages
        system.page_out(self.page(first), count * PAGE_SIZE)

    def discard(self, first: int = 0, pages: int | None = None) -> None:
        """Make its pages holes."""
        self.advise(mmap.MADV_DONTNEED, first, pages)

    def unmap(self, first: int = 0, pages: int | None = None) -> None:
        """Unmap it, or `pages` pages from `first` on."""
        count = self.pages - first if pages is None else pages
        lowlevel.munmap(self.page(first), count * PAGE_SIZE)
        self.lost(first, count)

    def lost(self, first: int = 0, pages: int | None = None) -> None:
        """Note that pages are not its own any more: `close` leaves alone what is there by then."""
        count = self.pages - first if pages is None else pages
        self._gone.append((self.page(first), count * PAGE_SIZE))

    def close(self) -> None:
        """Unmap it with its gaps. Twice is fine."""
        at = self._reserved
        for start, length in sorted([*self._gone, (self._reserved + self._length, 0)]):
            if start > at:
                lowlevel.munmap(at, start - at)
            at = max(at, start + length)
        self._length = 0
        self._gone = [(self._reserved, 0)]

    def __enter__(self) -> Area:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def foreign(pages: int = 1, **how: int) -> Area:
    """Map an `Area` of `pages` pages, writable unless told otherwise."""
    return Area(pages, **how)

"""The methods of getting pages from one place to another, each ready to be timed.

A method owns a source and a destination area with a number of slots in each, and brings the content
of every source slot to the destination slot of the same number. Slots are aligned to their own
size and lie a slot's length apart, so that moves are scattered; a single slot is a whole mapping.
"""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import pagemove
from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, lowlevel
from pagemove.measuring.machine import Area, open_userfaultfd

_REMAP = lowlevel.MREMAP_MAYMOVE | lowlevel.MREMAP_FIXED
_PRESENT = lowlevel.PAGE_IS_PRESENT
_ANYTHING = lowlevel.PAGE_IS_PRESENT | lowlevel.PAGE_IS_SWAPPED


@dataclass(frozen=True, slots=True)
class Size:
    """How much one operation brings over.

    Attributes
    ----------
    label : str
        For people: ``"16"``, ``"one huge page"``, ``"whole range"``.
    pages : int
        Pages of `PAGE_SIZE`.
    slots : int
        Operations in one timed run.
    huge : bool
        Whether source and destination are huge pages.
    """

    label: str
    pages: int
    slots: int
    huge: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one slot."""
        return self.pages * PAGE_SIZE

    def __str__(self) -> str:
        """Say it with its unit."""
        return (
            f"{self.label} page{'s' if self.pages > 1 else ''}"
            if self.label.isdigit()
            else (self.label)
        )


class Method(ABC):
    """One method, its memory, and what undoes it.

    Parameters
    ----------
    size : Size
        Of one operation, and how many there are in a run.
    """

    name: ClassVar[str]

    def __init__(self, size: Size) -> None:
        self.size = size
        stride = 2 * size.nbytes if size.slots > 1 else size.nbytes
        self.source = Area(stride * size.slots, huge_pages=size.huge)
        self.destination = Area(stride * size.slots, huge_pages=size.huge)
        offsets = range(0, stride * size.slots, stride)
        self.pairs = [(self.destination.address + n, self.source.address + n) for n in offsets]
        for destination, source in self.pairs:
            self.source.fill(source, size.nbytes)
            self.occupy(destination)

    def occupy(self, destination: int) -> None:  # noqa: B027 (most find nothing there)
        """Put into a destination slot what the method is to find there: nothing."""

    @abstractmethod
    def run(self) -> None:
        """Bring all slots over: what is timed."""

    @abstractmethod
    def restore(self) -> None:
        """Make everything as it was before `run`."""

    def warm(self) -> None:
        """Bring the kernel's structures, the code and the data into the caches."""
        self.run()
        self.restore()
        for _, source in self.pairs:
            bytes(self.source.view(source, self.size.nbytes))

    def close(self) -> None:
        """Free the memory."""
        self.source.close()
        self.destination.close()

    def _move_back(self) -> None:
        length = self.size.nbytes
        for destination, source in self.pairs:
            pagemove.remap_anon_pages(source, destination, length)

    def _remap_back(self) -> None:
        length = self.size.nbytes
        for destination, source in self.pairs:
            lowlevel.mremap(destination, length, length, _REMAP, source)
            self.destination.map(destination, length)
            self.occupy(destination)


class RemapAnonPages(Method):
    """The call of 2014, as this library has it."""

    name = "remap_anon_pages"

    def run(self) -> None:
        """Move the pages."""
        call, length = pagemove.remap_anon_pages, self.size.nbytes
        for destination, source in self.pairs:
            call(destination, source, length)

    def restore(self) -> None:
        """Move them back."""
        self._move_back()


class Mremap(Method):
    """mremap(2) with MREMAP_FIXED: the mapping moves."""

    name = "mremap"
    flags = _REMAP

    def run(self) -> None:
        """Move the mappings."""
        call, length, flags = lowlevel.mremap, self.size.nbytes, self.flags
        for destination, source in self.pairs:
            call(source, length, length, flags, destination)

    def restore(self) -> None:
        """Move them back and fill the gaps they leave."""
        self._remap_back()


class MremapKeepSource(Mremap):
    """mremap(2) with MREMAP_DONTUNMAP: a second mapping appears, and the pages go there."""

    name = "mremap, source kept"
    flags = _REMAP | lowlevel.MREMAP_DONTUNMAP


class MremapOccupied(Mremap):
    """The same where the last page of each destination is occupied."""

    name = "mremap, destination occupied"

    def occupy(self, destination: int) -> None:
        """Leave one page at the end, which only a look at all of them finds."""
        last = HUGE_PAGE_SIZE if self.size.huge else PAGE_SIZE
        self.destination.fill(destination + self.size.nbytes - last, last)


class DetectingMremap(Method):
    """A mremap that looks first whether moving the pages is enough, where it is.

    It does the least a detection can do: one PAGEMAP_SCAN for each side. What else may forbid the
    move, a shared page, is left to the move to find.
    """

    name = "detecting mremap, when it can"

    def __init__(self, size: Size) -> None:
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        super().__init__(size)

    def run(self) -> None:
        """Move the pages where there are pages and room for them, the mappings elsewhere."""
        scan, move, remap = lowlevel.pagemap_scan, pagemove.remap_anon_pages, lowlevel.mremap
        fd, length = self._pagemap, self.size.nbytes
        for destination, source in self.pairs:
            occupied = scan(fd, destination, destination + length, _ANYTHING)
            present = scan(fd, source, source + length, _PRESENT)
            if not occupied and len(present) == 1 and present[0][1] - present[0][0] == length:
                move(destination, source, length)
            else:
                remap(source, length, length, _REMAP, destination)

    def restore(self) -> None:
        """Move the pages back."""
        self._move_back()

    def close(self) -> None:
        """Free memory and descriptor."""
        os.close(self._pagemap)
        super().close()


class DetectingMremapFailing(DetectingMremap):
    """The same where it finds at the last page that it has to move the mapping."""

    name = "detecting mremap, when it cannot"
    occupy = MremapOccupied.occupy

    def restore(self) -> None:
        """Move the mappings back."""
        self._remap_back()


class LibraryDetecting(RemapAnonPages):
    """The library's own detecting mremap, where moving the pages is enough."""

    name = "mremap(detect=True), when it can"

    def run(self) -> None:
        """Move the pages."""
        call, length = pagemove.mremap, self.size.nbytes
        for destination, source in self.pairs:
            call(destination, source, length, detect=True)


class LibraryDetectingFailing(MremapOccupied):
    """The library's own detecting mremap, where it has to move the mapping."""

    name = "mremap(detect=True), when it cannot"
    run = LibraryDetecting.run


class Memcpy(Method):
    """memcpy(3) into memory that is there already."""

    name = "memcpy, memory there"

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        length = size.nbytes
        self._views = [
            (self.destination.view(destination, length), self.source.view(source, length))
            for destination, source in self.pairs
        ]

    def occupy(self, destination: int) -> None:
        """Have the destination there."""
        self.destination.fill(destination, self.size.nbytes)

    def run(self) -> None:
        """Copy; assigning a view is the cheapest way from Python to memmove(3)."""
        for destination, source in self._views:
            destination[:] = source

    def restore(self) -> None:
        """Leave it: the next run copies the same again."""

    def close(self) -> None:
        """Free the memory, after the last view of it."""
        self._views.clear()
        super().close()


class MemcpyFresh(Memcpy):
    """memcpy(3) into memory that has to be allocated, and the source discarded."""

    name = "memcpy, fresh memory"

    def occupy(self, destination: int) -> None:
        """Have nothing there."""

    def run(self) -> None:
        """Copy, and give the source back to the kernel."""
        call, length = lowlevel.madvise, self.size.nbytes
        for (destination, source), (_, address) in zip(self._views, self.pairs, strict=True):
            destination[:] = source
            call(address, length, mmap.MADV_DONTNEED)

    def restore(self) -> None:
        """Move the copies to where the originals were."""
        self._move_back()


class UffdioCopy(Method):
    """UFFDIO_COPY: the kernel allocates the destination and copies into it."""

    name = "UFFDIO_COPY"

    def __init__(self, size: Size) -> None:
        self._fd = open_userfaultfd()
        super().__init__(size)
        area = self.destination
        mode = lowlevel.UFFDIO_REGISTER_MODE_WP
        lowlevel.register(self._fd, area.address, area.nbytes, mode)

    def run(self) -> None:
        """Copy; the source stays."""
        call, fd, length = lowlevel.copy, self._fd, self.size.nbytes
        for destination, source in self.pairs:
            call(fd, destination, source, length)

    def restore(self) -> None:
        """Discard the copies."""
        for destination, _ in self.pairs:
            lowlevel.madvise(destination, self.size.nbytes, mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Free memory and descriptor."""
        os.close(self._fd)
        super().close()


#: In the order of the tables.
ALL: tuple[type[Method], ...] = (
    RemapAnonPages,
    Mremap,
    MremapKeepSource,
    DetectingMremap,
    DetectingMremapFailing,
    LibraryDetecting,
    LibraryDetectingFailing,
    MremapOccupied,
    Memcpy,
    MemcpyFresh,
    UffdioCopy,
)

"""Which pages are mapped, how, and where one mapping ends and the next begins."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

#: Bytes in a page.
PAGE = os.sysconf("SC_PAGE_SIZE")


class CallError(Exception):
    """A call failed: what it says, and what it did before."""

    def __init__(self, number: int, *, moved: int = 0, index: int | None = None) -> None:
        super().__init__(errno.errorcode.get(number, number), moved, index)
        self.errno = number
        self.moved = moved
        self.index = index


class Impossible(AssertionError):  # noqa: N818 (a finding, not an error of the program)
    """The kernel was seen to do what it may not."""


class Registration(enum.Enum):
    """Which userfaultfd knows a mapping."""

    NONE = enum.auto()
    OURS = enum.auto()
    PERHAPS_OURS = enum.auto()  # a call failed early: registering first was its own business
    OTHER = enum.auto()


@dataclass(frozen=True, slots=True)
class Mapping:
    """What all pages of one mapping have in common."""

    prot: str = "rw"
    #: Private anonymous memory has no object; anything else the number of what is behind it.
    thing: int = 0
    locked: bool = False
    registered: Registration = Registration.NONE
    inherited: bool = True

    @property
    def movable(self) -> bool:
        """Whether this is private anonymous memory."""
        return not self.thing

    def like(self, other: Mapping) -> bool:
        """Whether the kernel may let the two be one mapping."""
        ours = {self.registered, other.registered}
        if Registration.PERHAPS_OURS in ours and Registration.OTHER not in ours:
            return replace(self, registered=other.registered) == other
        return self == other

    def surely_like(self, other: Mapping) -> bool:
        """Whether nothing tells the two apart."""
        return self == other and self.registered is not Registration.PERHAPS_OURS


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping: pages from `start` on, `length` of them."""

    start: int
    length: int
    mapping: Mapping

    @property
    def end(self) -> int:
        """The page after the last."""
        return self.start + self.length


class Mappings:
    """Every mapped page with its attributes, and the bounds between mappings.

    Like neighbours are one mapping here, until `adopt_bounds` is told otherwise: whether the kernel
    merges them depends on the reverse mappings of their pages, which no contract speaks of.
    """

    def __init__(self) -> None:
        self._mappings: dict[int, Mapping] = {}
        self._bounds: set[int] = set()
        self._optional: set[int] = set()
        self._last_thing = 0

    def mapping(self, page: int) -> Mapping | None:
        """Return how a page is mapped, or None."""
        return self._mappings.get(page)

    def inherited(self, page: int) -> bool:
        """Whether a child of fork has the page too."""
        return self._mappings[page].inherited

    def vma_at(self, page: int) -> Vma | None:
        """Return the mapping that has the page, or None."""
        mapping = self._mappings.get(page)
        if mapping is None:
            return None
        start = page
        while start not in self._bounds:
            start -= 1
        end = page + 1
        while end not in self._bounds:
            end += 1
        return Vma(start, end - start, mapping)

    def vmas(self, first: int, count: int) -> list[Vma]:
        """List the mappings that have pages of the range, cut to it."""
        found = []
        page, end = first, first + count
        while page < end:
            stop = page + 1
            while stop < end and stop not in self._bounds:
                stop += 1
            mapping = self._mappings.get(page)
            if mapping is not None:
                found.append(Vma(page, stop - page, mapping))
            page = stop
        return found

    def covered(self, first: int, count: int) -> bool:
        """Whether every page of the range is mapped."""
        return all(page in self._mappings for page in range(first, first + count))

    def add(self, first: int, count: int, prot: str, *, anonymous: bool, inherited: bool) -> None:
        """Map the range anew, whatever was mapped there."""
        thing = 0
        if not anonymous:
            self._last_thing += 1
            thing = self._last_thing
        mapping = Mapping(prot, thing, inherited=inherited)
        self._mappings.update(dict.fromkeys(range(first, first + count), mapping))
        self._find_bounds(first, count, edges=True)

    def remove(self, first: int, count: int) -> None:
        """Leave the range unmapped."""
        for page in range(first, first + count):
            self._mappings.pop(page, None)
        self._find_bounds(first, count)

    def change(self, first: int, count: int, **attributes: Any) -> None:
        """Change attributes of all pages of the range; ENOMEM unless all of it is mapped."""
        if not self.covered(first, count):
            raise CallError(errno.ENOMEM)
        for page in range(first, first + count):
            self._mappings[page] = replace(self._mappings[page], **attributes)
        self._find_bounds(first, count)

    def register_here(self, page: int, registration: Registration = Registration.OURS) -> None:
        """Note what the library does for a destination: register its whole mapping."""
        vma = self.vma_at(page)
        if vma is None or vma.mapping.registered in (Registration.OURS, Registration.OTHER):
            return
        self.change(vma.start, vma.length, registered=registration)

    def may_merge(self, first: int, count: int) -> None:
        """Let the kernel choose anew which like neighbours are one mapping."""
        self._find_bounds(first, count)

    def _find_bounds(self, first: int, count: int, *, edges: bool = False) -> None:
        for page in range(first, first + count + 1):
            left, right = self._mappings.get(page - 1), self._mappings.get(page)
            was_bound = page in self._bounds or page in self._optional
            self._optional.discard(page)
            if left is None and right is None:
                self._bounds.discard(page)
            elif left is None or right is None or not left.like(right):
                self._bounds.add(page)
            elif was_bound or (edges and page in (first, first + count)):
                self._optional.add(page)
                if left.surely_like(right):
                    self._bounds.discard(page)

    def adopt_bounds(self, first: int, count: int, seen: Iterable[int]) -> None:
        """Take over where mappings of the range were seen to begin or end."""
        window = range(first, first + count + 1)
        seen = {page for page in seen if page in window}
        surely = {page for page in self._bounds if page in window} - self._optional
        if not surely <= seen <= surely | self._optional:
            raise Impossible(
                f"mappings begin or end at {sorted(seen)}, not at {sorted(surely)}"
                f" and perhaps {sorted(self._optional)}"
            )
        self._bounds = {page for page in self._bounds if page not in window} | seen
        self._optional -= set(window)

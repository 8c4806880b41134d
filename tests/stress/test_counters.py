"""Writers count in pages while these move, and no count is lost.

A move is atomic, so an atomic increment happens either in the page before it left or, if the thread
came too late, in the new page that its fault puts into the hole. Such a page is in the way when the
next page comes: it is moved aside, uncopied, and its counters are added up like all others. If one
increment were in no page at the end, or in two, the sum would not be what the writers counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import (
    PAGE_SIZE,
    DestinationMapped,
    Memory,
    move,
    move_many,
    remap_anon_pages,
)
from support import child

from .siblings import COUNT, Sibling

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("siblings")]

_PAGES = 24
_WRITERS = 2
_WORDS = PAGE_SIZE // 8
_SECONDS = 1.0
_ASIDE = 256


class Counters:
    """Pages that move between two areas; `table` tells the writers where each page is now."""

    def __init__(self) -> None:
        self.memories = [Memory(_PAGES * PAGE_SIZE), Memory(_PAGES * PAGE_SIZE)]
        self.areas = [m.asarray(np.uint64, (_PAGES, _WORDS)) for m in self.memories]
        self.aside = Memory(_ASIDE * PAGE_SIZE)
        self.set_aside = 0
        self.counted = 0
        self.side = 0
        self.table = np.zeros(_PAGES, np.uint64)
        for page in range(_PAGES):
            self.publish(page, 0)

    def address(self, page: int, side: int) -> int:
        return self.memories[side].address + page * PAGE_SIZE

    def publish(self, page: int, side: int) -> None:
        """Send the writers there, from now on."""
        self.table[page] = self.address(page, side)

    def clear(self, address: int) -> None:
        """Move aside a page that a late writer has made."""
        if self.set_aside == _ASIDE:
            self.count_aside()
        to = self.aside.address + self.set_aside * PAGE_SIZE
        assert remap_anon_pages(to, address, PAGE_SIZE) == PAGE_SIZE
        self.set_aside += 1

    def count_aside(self) -> None:
        """Add up the pages aside, which no writer knows, and forget them."""
        words = self.aside.asarray(np.uint64)
        self.counted += int(words[: self.set_aside * _WORDS].sum())
        self.aside.discard()
        self.set_aside = 0

    def total(self) -> int:
        """Add up all that is in any page."""
        self.count_aside()
        return self.counted + sum(int(area.sum()) for area in self.areas)

    def close(self) -> None:
        del self.areas
        for memory in (*self.memories, self.aside):
            memory.close()


#: Moves the pages, in that order, to the other side as far as it can; gives how many.
Mover = Callable[[Counters, npt.NDArray[np.int64]], int]


def _one_by_one(counters: Counters, pages: npt.NDArray[np.int64]) -> int:
    for done, page in enumerate(pages.tolist()):
        of, to = counters.side, 1 - counters.side
        try:
            remap_anon_pages(counters.address(page, to), counters.address(page, of), PAGE_SIZE)
        except DestinationMapped:
            return done
    return len(pages)


def _many(counters: Counters, pages: npt.NDArray[np.int64]) -> int:
    of, to = counters.side, 1 - counters.side
    try:
        return move_many(counters.areas[to], counters.areas[of], pages, pages) // PAGE_SIZE
    except DestinationMapped as error:
        return error.index or 0


def _whole(counters: Counters, pages: npt.NDArray[np.int64]) -> int:
    of, to = counters.side, 1 - counters.side
    first = int(pages[0])
    try:
        return move(counters.areas[to][first:], counters.areas[of][first:]) // PAGE_SIZE
    except DestinationMapped as error:
        return error.moved // PAGE_SIZE


def _orders(mover: Mover) -> Iterator[npt.NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    while True:
        yield np.arange(_PAGES) if mover is _whole else rng.permutation(_PAGES)


def _move_under_writers(mover: Mover) -> tuple[int, int]:
    counters = Counters()
    rounds = 0
    with ExitStack() as stack:
        writers = [
            # Counters of different writers lie in different cache lines.
            Sibling(COUNT, counters.table.ctypes.data, _PAGES, number=1 + 8 * i)
            for i in range(_WRITERS)
        ]
        for writer in writers:
            stack.enter_context(writer).pause(2000)
        end = time.monotonic() + _SECONDS
        for pages in _orders(mover):
            left = pages
            while len(left):
                done = mover(counters, left)
                for page in left[:done].tolist():
                    counters.publish(page, 1 - counters.side)
                left = left[done:]
                if len(left):
                    counters.clear(counters.address(int(left[0]), 1 - counters.side))
            counters.side = 1 - counters.side
            rounds += 1
            # On a busy machine the writers may leave little time for moving.
            if time.monotonic() > end and rounds > 2:
                break
    written = sum(writer.found for writer in writers)
    total = counters.total()
    counters.close()
    return written, total


@pytest.mark.parametrize("mover", [_one_by_one, _many, _whole])
def test_no_increment_is_lost(mover: Mover) -> None:
    written, total = child(_move_under_writers, mover, deadline=120)
    assert total == written
    assert written > 1000

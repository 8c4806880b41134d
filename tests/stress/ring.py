"""Pages that move to and fro, and whether what a call says of them is true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pagemove import (
    PAGE_SIZE,
    Memory,
    RemapError,
    lowlevel,
    move,
    move_many,
    remap_anon_pages,
)

_WORDS = PAGE_SIZE // 8


class Ring:
    """Pages with a token in each, that move between two places of one `Memory`.

    A place has `span` pages. Place 0 begins at page 0, place 1 at page `distance`: the two overlap
    if that is less than `span`. `order` says which page of a place is the first, the second ... to
    move; by default all are. `count` is how many those are.
    """

    def __init__(
        self,
        span: int,
        *,
        distance: int | None = None,
        order: list[int] | None = None,
        zeros: tuple[int, ...] = (),
    ) -> None:
        self.count = span if order is None else len(order)
        self.distance = span if distance is None else distance
        self.order = np.arange(span) if order is None else np.array(order)
        self._span = span
        self._tokens = np.arange(1, self.count + 1, dtype=np.uint64)
        self._tokens[np.isin(self.order, zeros)] = 0
        pages = span + self.distance
        self.memory = Memory(pages * PAGE_SIZE)
        self.words = self.memory.asarray(np.uint64, (pages, _WORDS))
        self.side = 1
        self.begin()

    @property
    def overlaps(self) -> bool:
        """Whether the two places have pages in common."""
        return self.distance < self._span

    def place(self, side: int) -> npt.NDArray[np.uint64]:
        """Return the pages of one place, as an array."""
        first = side * self.distance
        return self.words[first : first + self._span]

    def begin(self) -> None:
        """Fill the place in which the pages are, and nothing else."""
        self.memory.discard()
        pages = self.place(self.side)
        for page, token in zip(self.order, self._tokens, strict=True):
            if token:
                pages[page, 0] = token
            else:
                pages[page].sum()

    def tells_the_truth(self, moved: int) -> bool:
        """Compare what is there with `moved` pages, in their order, having moved."""
        expected = np.zeros(self.pages, bool)
        words = np.zeros(self.pages, np.uint64)
        at = np.array([self.side, 1 - self.side]) * self.distance
        for i, page in enumerate(self.order + at[0]):
            expected[page] = True
            words[page] = self._tokens[i]
        for i, page in enumerate(self.order[:moved]):
            expected[page + at] = False, True
            words[page + at] = 0, self._tokens[i]
        resident = lowlevel.mincore(self.memory.address, self.memory.nbytes)
        there = (np.frombuffer(resident, np.uint8) & 1) != 0
        if not np.array_equal(there, expected):
            return False
        return bool(np.array_equal(self.words[there, 0], words[there]))

    def turn(self) -> None:
        """Go on when all pages have moved: from where they are; if places overlap, up again."""
        if not self.overlaps:
            self.side = 1 - self.side
            return
        at = self.memory.address
        left = self.count
        while left:
            part = min(left, self.distance)
            left -= part
            low, high = (at + page * PAGE_SIZE for page in (left, left + self.distance))
            try:
                whole = remap_anon_pages(high, low, part * PAGE_SIZE) == part * PAGE_SIZE
            except RemapError:
                whole = False
            if not whole:
                self.begin()
                return
        # Touched lately, or there is nothing for a sibling in MADV_COLD to change.
        self.place(self.side)[:, 0].sum()

    @property
    def address(self) -> int:
        """Address of the first page of both places."""
        return self.memory.address

    @property
    def pages(self) -> int:
        """Pages of both places."""
        return len(self.words)

    def close(self) -> None:
        """Free the memory."""
        del self.words
        self.memory.close()


#: Calls in one burst, see `lies`.
BURST = 50

#: Asks for all pages of a ring to be moved to the other place; gives how many it is said to have.
Ask = Callable[[Ring], int]


def _ends(ring: Ring) -> tuple[int, int, int]:
    at = ring.memory.address
    of, to = (side * ring.distance * PAGE_SIZE for side in (ring.side, 1 - ring.side))
    return at + to, at + of, ring.count * PAGE_SIZE


def integers(flags: int) -> Ask:
    """Ask remap_anon_pages, by address."""

    def ask(ring: Ring) -> int:
        try:
            return remap_anon_pages(*_ends(ring), flags) // PAGE_SIZE
        except RemapError as error:
            return error.moved

    return ask


def buffers(flags: int) -> Ask:
    """Ask remap_anon_pages, by array."""

    def ask(ring: Ring) -> int:
        dst, src = ring.place(1 - ring.side), ring.place(ring.side)
        try:
            return remap_anon_pages(dst, src, src.nbytes, flags) // PAGE_SIZE
        except RemapError:
            return 0

    return ask


def whole(holes: bool) -> Ask:
    """Ask move."""

    def ask(ring: Ring) -> int:
        try:
            return move(ring.place(1 - ring.side), ring.place(ring.side), holes=holes) // PAGE_SIZE
        except RemapError as error:
            return error.moved // PAGE_SIZE

    return ask


def _index(error: RemapError) -> int:
    assert error.moved == (error.index or 0) * PAGE_SIZE
    return error.moved // PAGE_SIZE


def many(holes: bool) -> Ask:
    """Ask move_many, in the ring's order."""

    def ask(ring: Ring) -> int:
        dst, src = ring.place(1 - ring.side), ring.place(ring.side)
        try:
            return move_many(dst, src, ring.order, ring.order, holes=holes) // PAGE_SIZE
        except RemapError as error:
            return _index(error)

    return ask


def lies(ring: Ring, ask: Ask, bursts: int) -> int:
    """Count the bursts with a wrong answer.

    Calls follow close on one another, for a page that has just moved is what a sibling in
    MADV_COLD changes: nothing is compared but what a call says of itself until it is not "all".
    """
    wrong = 0
    for _ in range(bursts):
        moved = 0
        for _ in range(BURST):
            moved = ask(ring)
            if moved != ring.count:
                break
            moved = 0
            ring.turn()
        if not ring.tells_the_truth(moved):
            wrong += 1
            ring.begin()
        elif moved:
            ring.begin()
    return wrong

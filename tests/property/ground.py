"""Memory that random arguments may name, and memory around it that nothing may ever reach."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter

import numpy as np
import numpy.typing as npt

import pagemove
from model import PAGE
from pagemove import lowlevel
from pagemove.introspect import states_at

#: Pages of a playground; arguments that name parts of it stay within.
PLAY = 8
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def _words(address: int, pages: int) -> npt.NDArray[np.uint64]:
    raw = memoryview((ctypes.c_char * (pages * PAGE)).from_address(address))
    return np.frombuffer(raw, np.uint64).reshape(pages, PAGE // 8)


class _Part:
    """Pages of which every other one has been written."""

    def __init__(self, address: int, pages: int, token: int) -> None:
        self.address, self.pages, self.token = address, pages, token
        self.fill()
        self.seen = self.look()

    def fill(self) -> None:
        lowlevel.madvise(self.address, self.pages * PAGE, mmap.MADV_DONTNEED)
        words = _words(self.address, self.pages)
        for page in range(0, self.pages, 2):
            words[page] = self.token + page

    def look(self) -> list[tuple[int, int]]:
        """List (page state, contents); -1 is for mixed contents."""
        found = []
        words = _words(self.address, self.pages)
        # One page after another: reading a hole would make it a zero page.
        for page, state in enumerate(states_at(self.address, self.pages)):
            token = 0
            if state & pagemove.PageState.PRESENT:
                token = int(words[page, 0])
                token = token if (words[page] == token).all() else -1
            found.append((int(state), token))
        return found


class Ground:
    """Playgrounds in foreign memory and in a `Memory`, each between canaries of its own kind.

    The canaries are in the same mapping as the playground, so that nothing but the length asked
    for keeps a call out of them. A whole `Memory` and an array of `empty` are playgrounds too.
    """

    def __init__(self) -> None:
        # A gap on both sides: what an argument reaches behind the area must not be anybody's.
        self._reserved = lowlevel.mmap(0, 5 * PLAY * PAGE, 0, _PRIVATE)
        foreign = self._reserved + PLAY * PAGE
        lowlevel.mprotect(foreign, 3 * PLAY * PAGE, _READ_WRITE)
        self._around = pagemove.Memory(3 * PLAY * PAGE)
        owned = self._around.address
        self.foreign, self.owned = foreign + PLAY * PAGE, owned + PLAY * PAGE
        self.memory = pagemove.Memory(PLAY * PAGE)
        self.array = pagemove.empty(PLAY * PAGE - 8, np.uint8)
        self._play = [
            _Part(at, PLAY, at)
            for at in (self.foreign, self.owned, self.memory.address, self.array.ctypes.data)
        ]
        self._canaries = [
            _Part(at, PLAY, at)
            for at in (foreign, foreign + 2 * PLAY * PAGE, owned, owned + 2 * PLAY * PAGE)
        ]
        self.scrap = pagemove.Memory(PLAY * PAGE)
        self.closed = pagemove.Memory(PAGE)
        self.closed.close()

    def close(self) -> None:
        """Free all of it."""
        del self.array
        for memory in (self._around, self.memory, self.scrap):
            memory.close()
        lowlevel.munmap(self._reserved, 5 * PLAY * PAGE)

    def buffer(self, address: int, nbytes: int) -> ctypes.Array[ctypes.c_char]:
        """View part of a playground as an object with a writable buffer."""
        return (ctypes.c_char * nbytes).from_address(address)

    def check(self, moved: int) -> None:
        """Check that no page was lost or reached that was not asked for.

        `moved` is what the call said to have moved: where nothing was, nothing may have changed.
        """
        parts = self._play + self._canaries
        before, now = [part.seen for part in parts], [part.look() for part in parts]
        if now == before:
            return
        for part in parts:
            part.fill()
        canaries = len(self._play)
        assert moved
        assert now[canaries:] == before[canaries:]
        assert _pages(now) == _pages(before)


def _pages(parts: list[list[tuple[int, int]]]) -> Counter[int]:
    return Counter(token for part in parts for state, token in part if state)

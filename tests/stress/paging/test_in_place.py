"""Threads that write noise and what compresses over each other, free, grow, evict and fork.

Blocks that stay in place come and go by all of that. Contents are equal, no limit is ever exceeded,
and at the end nothing is counted. ``PAGEMOVE_SOAK=20`` makes it twenty times as long.
"""

from __future__ import annotations

import mmap
import random
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import lowlevel
from pagemove._native import pager
from pagemove.paging.arenas import new_arena
from support.children import newborn

from . import SOAK
from .test_fork_storm import forked

pytestmark = [
    pytest.mark.needs("paging", "fork"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
    pytest.mark.slow,
]

_SECONDS = 12.0
_MIB = 1 << 20
_LIMIT = 4 * _MIB
_THREADS = 3
_LARGEST = 2 * _MIB
Words = npt.NDArray[np.uint64]


def _contents(kind: int, seed: int, count: int) -> Words:
    if kind == 0:
        return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
    if kind == 1:
        return np.full(count, seed % 3, np.uint64)
    return np.arange(seed, seed + count, dtype=np.uint64)


class _Arrays:
    """The arrays of one thread, made of parts of which each has contents of its own."""

    def __init__(self, arena: Any, memory: Any, seed: int) -> None:
        self.arena, self.memory = arena, memory
        self.draw = random.Random(seed)
        self.words = np.frombuffer(memory, np.uint64)
        self.known: dict[int, list[tuple[int, int, int]]] = {}

    def _part(self, address: int, nbytes: int) -> Words:
        return self.words[(address - self.memory.address) // 8 :][: nbytes // 8]

    def _fill(self, address: int, nbytes: int) -> tuple[int, int, int]:
        contents = self.draw.choice([0, 0, 1, 2]), self.draw.randrange(1 << 30), nbytes
        self._part(address, nbytes)[:] = _contents(contents[0], contents[1], nbytes // 8)
        return contents

    def check(self, address: int) -> None:
        at = address
        for kind, seed, nbytes in self.known[address]:
            assert (self._part(at, nbytes) == _contents(kind, seed, nbytes // 8)).all()
            at += nbytes

    def make(self) -> None:
        sizes = [8 * self.draw.randrange(1, _LARGEST // 16) for _ in range(2)]
        address = self.arena.allocate(sum(sizes), True)
        assert address
        assert not self._part(address, sum(sizes)).any()
        second = address + sizes[0]
        self.known[address] = [self._fill(address, sizes[0]), self._fill(second, sizes[1])]

    def overwrite(self, address: int) -> None:
        which, at = self.draw.randrange(len(self.known[address])), address
        for _, _, nbytes in self.known[address][:which]:
            at += nbytes
        self.known[address][which] = self._fill(at, self.known[address][which][2])

    def grow(self, address: int) -> None:
        parts = self.known.pop(address)
        before = sum(nbytes for _, _, nbytes in parts)
        more = 8 * self.draw.randrange(1, _LARGEST // 16)
        moved = self.arena.resize(address, before + more)
        assert moved
        self.known[moved] = parts if len(parts) > 4 else [*parts, self._fill(moved + before, more)]

    def free(self, address: int) -> None:
        del self.known[address]
        self.arena.release(address)

    def evict(self, address: int) -> None:
        nbytes = sum(nbytes for _, _, nbytes in self.known[address])
        self.memory.evict(address - self.memory.address, nbytes)

    def lose_pages(self, address: int) -> None:
        """Have the kernel forget some pages, and write what was there again."""
        nbytes = sum(nbytes for _, _, nbytes in self.known[address])
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        if start + mmap.PAGESIZE <= address + nbytes:
            lowlevel.madvise(start, mmap.PAGESIZE, mmap.MADV_DONTNEED)
        self.known[address] = [self._fill(address, nbytes // 8 * 8)]

    def step(self) -> None:
        whole = sum(nbytes for parts in self.known.values() for _, _, nbytes in parts)
        if not self.known or whole < 6 * _MIB:
            self.make()
        address = self.draw.choice(list(self.known))
        self.check(address)
        what = self.draw.random()
        if what < 0.4:
            self.overwrite(address)
        elif what < 0.6 or whole > 12 * _MIB:
            self.free(address)
        elif what < 0.75:
            self.grow(address)
        elif what < 0.9:
            self.evict(address)
        else:
            self.lose_pages(address)


def _child(mine: _Arrays) -> int:
    for address in list(mine.known):
        mine.check(address)
        mine.overwrite(address)
    for address in list(mine.known):
        mine.check(address)
        mine.evict(address)
        mine.check(address)
        mine.free(address)
    return 0


def _run(moves: bool, forks: bool, seconds: float) -> dict[str, Any]:
    pager.set_moves(moves)
    arena, memory = new_arena(_LIMIT, _LIMIT, None)
    # The pager serves it from its first pin on.
    one = np.array([[0, 1]], np.uint32).tobytes()
    memory.pin_blocks(one, False)
    memory.unpin_blocks(one)
    every = [_Arrays(arena, memory, seed) for seed in range(_THREADS)]
    failed: list[BaseException] = []
    until = time.monotonic() + seconds
    most = {"in place": 0, "resident": 0, "children": 0}
    steps = [0] * _THREADS

    def work(number: int) -> None:
        mine = every[number]
        try:
            while time.monotonic() < until and not failed:
                mine.step()
                steps[number] += 1
                if forks and number == 0 and steps[0] % 8 == 0:
                    assert forked(lambda _: _child(mine), 0) == 0
                    most["children"] += 1
            for address in list(mine.known):
                mine.check(address)
                mine.free(address)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        stats = memory.stats()
        most["in place"] = max(most["in place"], int(stats.store["in_place_blocks"]))
        most["resident"] = max(most["resident"], stats.resident_nbytes)
        time.sleep(0.002)
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    memory.evict()  # what was read ahead of somebody
    stats = memory.stats()
    left = {name: stats.store[name] for name in ("memory_nbytes", "blocks", "in_place_blocks")}
    return most | left | {"at the end": stats.resident_nbytes + stats.dirty_nbytes + stats.errors}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moves", [True, False], ids=["moves", "without moves"])
@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with children"])
def test_nothing_is_lost_or_left(moves: bool, forks: bool) -> None:
    found = newborn(_run, moves, forks, _SECONDS * SOAK, deadline=120 + 3 * _SECONDS * SOAK)
    assert found.pop("resident") <= _LIMIT
    assert found.pop("in place") > 16
    assert (found.pop("children") > 0) == forks
    assert found == dict.fromkeys(found, 0)

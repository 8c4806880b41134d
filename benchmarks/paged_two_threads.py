"""Two threads that touch random blocks at a limit of a quarter, against one: faults a second."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from benchmarks._baselines import bare_loop, touch_by_threads
from benchmarks._measure import Effort, Finding
from benchmarks._paging import (
    QUARTER,
    CachedFile,
    Memory,
    Place,
    Way,
    cached_file,
    in_turn,
    paged,
    places,
    speed,
)
from benchmarks._report import run_alone

_BLOCKS = (4096, 64 << 10)
_TARGET = 1
# Threads that are free to run anywhere settle on one CPU or on two, for a while.
_LONGER = 4


class _Touching:
    """Touches random blocks with some threads."""

    def __init__(self, memory: Memory, nbytes: int, block: int, place: Place) -> None:
        self._memory, self._clock = memory, place.clock
        self._block, self._blocks = block, nbytes // block
        self._random = np.random.default_rng(block)
        # What is measured is the steady state.
        self.measure(1, self._blocks)

    def measure(self, threads: int, touches: int) -> float:
        """Return nanoseconds a fault."""
        blocks = self._random.integers(self._blocks, size=touches, dtype=np.uint64)
        before, began = self._memory.faults, self._clock()
        touch_by_threads(self._memory.address, blocks * np.uint64(self._block), threads)
        took = self._clock() - began
        return took / max(self._memory.faults - before, 1)


def _compare(name: str, touching: _Touching, target: float | None, effort: Effort) -> Finding:
    touches = _LONGER * effort.pages
    one, two = "one thread", f"two threads; {name}"
    ways = [
        Way(one, lambda: touching.measure(1, touches)),
        Way(two, lambda: touching.measure(2, touches)),
    ]
    return speed(in_turn(ways, effort.passes), two, one, target)


def _at(place: Place, block: int, file: CachedFile, effort: Effort) -> list[Finding]:
    limit = file.nbytes // QUARTER
    size = f"{block >> 10} KiB; {place.name}"
    with paged(file, block, limit=limit) as memory:
        ours = _Touching(memory, file.nbytes, block, place)
        found = _compare(size, ours, _TARGET, effort)
    with closing(bare_loop(file.fd, file.nbytes, block, limit=limit)) as bare:
        theirs = _Touching(bare, file.nbytes, block, place)
        return [found, _compare(f"the bare C loop, {size}", theirs, None, effort)]


def measure(effort: Effort) -> list[Finding]:
    findings = []
    with cached_file(effort.file) as file:
        for place in places():
            for block in _BLOCKS:
                with place.here():
                    findings += _at(place, block, file, effort)
    return findings


if __name__ == "__main__":
    run_alone(measure)

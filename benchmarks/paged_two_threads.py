"""Two threads that touch paged memory, against one: faults a second."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np

from benchmarks._baselines import Words, bare_loop, touch_by_threads
from benchmarks._measure import Effort, Finding
from benchmarks._paging import (
    QUARTER,
    CachedFile,
    Chunks,
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

_SMALL, _USUAL = 4096, 64 << 10
_TOUCHES = 1024
_TARGET = 1


def _compare(
    name: str,
    memory: Memory,
    take: Callable[[], Words],
    target: float | None,
    place: Place,
    rounds: int,
) -> Finding:
    def way(threads: int, name: str) -> Way:
        def measure() -> float:
            offsets = take()
            before, began = memory.faults, place.clock()
            touch_by_threads(memory.address, offsets, threads)
            took = place.clock() - began
            return took / max(memory.faults - before, 1)

        return Way(name, measure)

    one, two = "one thread", f"two threads; {name}"
    samples = in_turn([way(1, one), way(2, two)], rounds)
    return speed(samples, two, one, target)


def _small_blocks(place: Place, file: CachedFile, rounds: int) -> list[Finding]:
    """Touch every block once, without a limit."""
    findings = []
    with paged(file, _SMALL) as memory, closing(bare_loop(file.fd, file.nbytes, _SMALL)) as bare:
        memories: list[tuple[str, Memory, float | None]] = [
            ("4 KiB, no limit", memory, _TARGET),
            ("the bare C loop, 4 KiB", bare, None),
        ]
        for name, one, target in memories:
            take = partial(Chunks(file.nbytes, _SMALL, 1).take, _TOUCHES)
            name = f"{name}; {place.name}"
            findings.append(_compare(name, one, take, target, place, rounds))
    return findings


def _usual_blocks(place: Place, file: CachedFile, rounds: int) -> Finding:
    """Touch blocks at random at a limit of a quarter."""
    random = np.random.default_rng(1)
    blocks = file.nbytes // _USUAL

    def take() -> Words:
        return random.integers(blocks, size=_TOUCHES, dtype=np.uint64) * np.uint64(_USUAL)

    with paged(file, _USUAL, limit=file.nbytes // QUARTER) as memory:
        # What is measured is the steady state.
        for _ in range(QUARTER):
            touch_by_threads(memory.address, take(), 1)
        name = f"64 KiB at a quarter; {place.name}"
        return _compare(name, memory, take, _TARGET, place, rounds)


def measure(effort: Effort) -> list[Finding]:
    findings = []
    # One more round warms up, and each of them is done with one thread and with two.
    rounds = effort.passes
    with cached_file(max(effort.file, _SMALL * _TOUCHES * (rounds + 1) * 2)) as file:
        for place in places():
            with place.here():
                findings += _small_blocks(place, file, rounds)
                findings.append(_usual_blocks(place, file, rounds))
    return findings


if __name__ == "__main__":
    run_alone(measure)

"""Random faults of 4 KiB from a cold disk: their speed by 1, 4 and 16 threads, and CPU time."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial

import numpy as np

from benchmarks._baselines import Words, bare_loop, touch_by_threads
from benchmarks._measure import Effort, Finding, free
from benchmarks._paging import (
    CachedFile,
    Paged,
    Way,
    cached_file,
    chill,
    cost,
    in_turn,
    paged,
    speed,
)
from benchmarks._report import run_alone
from pagemove import PAGE_SIZE

# At least so much of the speed of numpy.memmap, by touching threads.
_SPEEDS = {1: 0.9, 4: 1.0, 16: 1.0}
# At most so much of the CPU time of the loop, by touching threads.
_CPU_TIME = 1.3
_THREADS = (1, 16)
_LOOP = "C loop: pread, UFFDIO_COPY"

_Clock = Callable[[], int]


class _Touching:
    """The ways to touch random blocks of a file, the page cache empty of it; each time others."""

    def __init__(self, file: CachedFile, count: int) -> None:
        self._file, self._count = file, count
        self._random = np.random.default_rng(1)

    def _timed(self, address: int, threads: int, clock: _Clock) -> float:
        """Return nanoseconds a touch."""
        blocks = self._random.choice(self._file.nbytes // PAGE_SIZE, self._count, replace=False)
        offsets: Words = blocks.astype(np.uint64) * np.uint64(PAGE_SIZE)
        chill(self._file.fd)
        began = clock()
        touch_by_threads(address, offsets, threads)
        return (clock() - began) / self._count

    def paged(self, memory: Paged, threads: int, clock: _Clock) -> float:
        """In a region that has nothing resident."""
        assert memory.pager.evict(0, self._file.nbytes) == 0
        before = memory.faults
        took = self._timed(memory.address, threads, clock)
        assert memory.faults - before == self._count, "something was resident"
        return took

    def by_memmap(self, threads: int) -> float:
        """In a mapping of its own: the cache cannot be emptied of what is mapped."""
        with open(self._file.fd, "rb", closefd=False) as opened:
            words = np.memmap(opened, np.uint64, "r")
        mapping = words._mmap
        assert mapping is not None
        mapping.madvise(mmap.MADV_RANDOM)
        return self._timed(words.ctypes.data, threads, time.perf_counter_ns)

    def by_loop(self, threads: int, clock: _Clock) -> float:
        """In memory of its own, whose faults one thread serves."""
        with closing(bare_loop(self._file.fd, self._file.nbytes, PAGE_SIZE)) as bare:
            took = self._timed(bare.address, threads, clock)
            assert bare.faults == self._count
        return took


def _name(threads: int) -> str:
    return f"{threads} threads" if threads > 1 else "one thread"


def _speeds(touching: _Touching, memories: Mapping[str, Paged], effort: Effort) -> list[Finding]:
    found = []
    for threads, target in _SPEEDS.items():
        who = _name(threads)
        loop, baseline = f"{who}, {_LOOP}", f"numpy.memmap, MADV_RANDOM, {who}"
        clock = time.perf_counter_ns
        ways = [
            Way(f"{who}, {how}", partial(touching.paged, memory, threads, clock))
            for how, memory in memories.items()
        ]
        ways.append(Way(loop, partial(touching.by_loop, threads, clock)))
        ways.append(Way(baseline, partial(touching.by_memmap, threads)))
        samples = in_turn(ways, effort.passes)
        found += [speed(samples, way.name, baseline, target) for way in ways[:-2]]
        found.append(speed(samples, loop, baseline, None))
    return found


def _cpu_times(touching: _Touching, memories: Mapping[str, Paged], effort: Effort) -> list[Finding]:
    found = []
    for threads in _THREADS:
        who = _name(threads)
        baseline, clock = f"{_LOOP}, {who}", time.process_time_ns
        ways = [
            Way(f"CPU time, {who}, {how}", partial(touching.paged, memory, threads, clock))
            for how, memory in memories.items()
        ]
        ways.append(Way(baseline, partial(touching.by_loop, threads, clock)))
        samples = in_turn(ways, effort.passes)
        found += [cost(samples, way.name, baseline, _CPU_TIME) for way in ways[:-1]]
    return found


def measure(effort: Effort) -> list[Finding]:
    with (
        free(),
        cached_file(effort.file) as file,
        paged(file, PAGE_SIZE) as memory,
        paged(file, PAGE_SIZE, direct=True) as direct,
    ):
        touching = _Touching(file, effort.pages)
        memories = {"paged": memory, "paged, direct=True": direct}
        return [
            *_speeds(touching, memories, effort),
            *_cpu_times(touching, memories, effort),
        ]


if __name__ == "__main__":
    run_alone(measure)

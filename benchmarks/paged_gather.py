"""Scattered rows by `take`, from a cold disk, from a store that is far away, and cached."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import pagemove
from benchmarks._baselines import Words, read_by_threads
from benchmarks._measure import Effort, Finding, free
from benchmarks._paging import Way, chill, in_turn, opened_directly, speed
from benchmarks._report import run_alone
from benchmarks._stores import Instant, warmed
from pagemove import PAGE_SIZE, PagedMemory
from pagemove.stores import FileStore

_ROW = PAGE_SIZE
_WORDS = _ROW // 8
_THREADS = 16
_DELAY = 0.001
_LINES = 32
# Rows of the far store, and how many of them are faulted in one by one.
_FAR = 20

Table = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _File:
    """A file of rows that begin with their own number, and two descriptors of it."""

    path: Path
    fd: int
    direct: int
    rows: int


@contextmanager
def _file(nbytes: int) -> Iterator[_File]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table")
        count = nbytes // _ROW
        with path.open("wb") as file:
            for first in range(0, count, 4096):
                rows = np.arange(first, min(first + 4096, count), dtype=np.uint64)
                file.write(np.repeat(rows, _WORDS))
            os.fsync(file.fileno())
        fd = os.open(path, os.O_RDONLY)
        try:
            with opened_directly(path) as direct:
                yield _File(path, fd, direct, count)
        finally:
            os.close(fd)


def _timed(job: Callable[[], Table], rows: Words) -> float:
    """Return nanoseconds a row, and fail if one is not what was asked for."""
    began = time.perf_counter_ns()
    found = job()
    took = time.perf_counter_ns() - began
    assert (found[:, 0] == rows).all(), "another row"
    assert (found[:, -1] == rows).all(), "another row"
    return took / len(rows)


class _Rows:
    """The ways to copy random rows of a file; each time other ones."""

    def __init__(self, file: _File, count: int, block: int, cold: bool) -> None:
        self._file, self._count, self._block, self._cold = file, count, block, cold
        self._random = np.random.default_rng(1)
        self._fixed = self._draw()

    def _draw(self) -> Words:
        return self._random.integers(self._file.rows, size=self._count, dtype=np.uint64)

    def _next(self) -> Words:
        if not self._cold:
            return self._fixed
        chill(self._file.fd)
        return self._draw()

    def take(self, memory: PagedMemory) -> float:
        table = memory.asarray(np.uint64, (self._file.rows, _WORDS))
        if self._cold:
            memory.evict()
        rows = self._next()
        return _timed(lambda: pagemove.take(table, rows), rows)

    def by_memmap(self) -> float:
        table = np.memmap(self._file.path, np.uint64, "r", shape=(self._file.rows, _WORDS))
        mapping = table._mmap
        assert mapping is not None
        mapping.madvise(mmap.MADV_RANDOM)
        rows = self._next()
        if not self._cold:
            assert table[rows][0, 0] == rows[0]
        return _timed(lambda: table[rows], rows)

    def by_threads(self) -> float:
        rows = self._next()

        def job() -> Table:
            with closing(mmap.mmap(-1, self._count * _ROW)) as memory:
                to = np.frombuffer(memory, np.uint64).reshape(-1, _WORDS)
                offsets = rows * np.uint64(_ROW)
                read_by_threads(self._file.direct, offsets, _ROW, to.ctypes.data, _THREADS)
                found = to[:, [0, -1]]
                del to
                return found

        return _timed(job, rows)


def _from_file(file: _File, count: int, effort: Effort, *, block: int, cold: bool) -> list[Finding]:
    with (
        FileStore(file.path) as store,
        PagedMemory(store, block_size=block, resident_limit="unlimited") as memory,
    ):
        jobs = _Rows(file, count, block, cold)
        state = "cold" if cold else "cached"
        subject = f"take, {count} {state} rows of {_ROW >> 10} KiB, blocks of {block >> 10} KiB"
        mapped = "numpy.memmap[rows]" + (", MADV_RANDOM" if cold else "")
        read = f"O_DIRECT pread by {_THREADS} C threads"
        ways = [Way(subject, lambda: jobs.take(memory)), Way(mapped, jobs.by_memmap)]
        small = block == PAGE_SIZE
        if cold and small:
            ways.append(Way(read, jobs.by_threads))
        samples = in_turn(ways, max(effort.passes // 3, 2))
        findings = [speed(samples, subject, mapped, 3.0 if cold and small else None)]
        if cold and small:
            findings.append(speed(samples, subject, read, 0.7))
        return findings


def _far_away(effort: Effort) -> Finding:
    nbytes = effort.file // 4
    count = nbytes // _ROW
    subject = f"take, rows of {_ROW >> 10} KiB, each request {_DELAY * 1000:g} ms"
    baseline = "the same rows, fault by fault"
    random = np.random.default_rng(1)
    store = Instant(nbytes, _DELAY, concurrency=_LINES)
    with PagedMemory(store, block_size=PAGE_SIZE, prefetch="off") as memory:
        warmed(memory)
        # As its bytes are: every 2 MiB the same.
        table = memory.asarray(np.uint64, (count, _WORDS))

        def measure(job: Callable[[Words], Table], size: int) -> float:
            memory.evict()
            rows = random.choice(count, min(size, count), replace=False)
            began = time.perf_counter_ns()
            found = job(rows)
            took = time.perf_counter_ns() - began
            wanted = rows % (2 << 20 >> 12) * _WORDS + 1
            assert (found[:, 0] == wanted).all(), "another row"
            return took / len(rows)

        ways = [
            Way(subject, lambda: measure(lambda rows: pagemove.take(table, rows), effort.pages)),
            Way(baseline, lambda: measure(lambda rows: table[rows], effort.pages // _FAR + 1)),
        ]
        samples = in_turn(ways, max(effort.passes // 3, 2))
        ways.clear()
        table = np.empty((0, 0), np.uint64)
    return speed(samples, subject, baseline, 10.0, f"{_LINES} requests at once")


def measure(effort: Effort) -> list[Finding]:
    count = effort.touched // 5
    with free(), _file(effort.long_file) as file:
        return [
            *_from_file(file, count, effort, block=PAGE_SIZE, cold=True),
            *_from_file(file, count, effort, block=64 << 10, cold=True),
            *_from_file(file, count, effort, block=PAGE_SIZE, cold=False),
            _far_away(effort),
        ]


if __name__ == "__main__":
    run_alone(measure)

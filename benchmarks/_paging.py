"""What the benchmarks of paged memory share: files, pagers, places to run, ratios of time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks._baselines import Words
from benchmarks._measure import Finding, Unmeasurable, free, pinned, spread
from pagemove._native.pager import Pager

__all__ = [
    "QUARTER",
    "CachedFile",
    "Chunks",
    "Memory",
    "Paged",
    "Place",
    "Way",
    "cached_file",
    "chill",
    "compared",
    "cost",
    "in_turn",
    "opened_directly",
    "paged",
    "places",
    "speed",
    "timed",
]

QUARTER = 4
_CHUNK = 1 << 24
_WORD = 8
# 128 KiB, the kernel's default read-ahead: so the page cache holds the file in folios of the size
# that it has after reading one. What a write costs goes by that size, on ext4 by far.
_PIECE = (128 << 10) // _WORD
_MODES = {"r": 0, "r+": 1, "c": 2}
# As `PagedMemory` has it.
_STORE_TIMEOUT_NS = 5_000_000_000


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file without a name, on disk and in the page cache.

    Attributes
    ----------
    fd : int
        Its descriptor.
    nbytes : int
        Its length.
    total : int
        The sum of its 64-bit words, modulo 2**64.
    """

    fd: int
    nbytes: int
    total: int


@contextmanager
def cached_file(nbytes: int) -> Iterator[CachedFile]:
    """Make a file of words that are all different, where temporary files go."""
    with tempfile.TemporaryFile(buffering=0) as file:
        total = 0
        for offset in range(0, nbytes, _CHUNK):
            length = min(_CHUNK, nbytes - offset)
            words = np.arange(offset, offset + length, _WORD, np.uint64)
            words *= np.uint64(0x9E3779B97F4A7C15)
            total += int(words.sum())
            for piece in np.split(words, range(_PIECE, len(words), _PIECE)):
                file.write(piece)
        # Written back now, not while something is measured.
        os.fsync(file.fileno())
        buffer = bytearray(_CHUNK)
        while file.readinto(buffer):
            pass
        yield CachedFile(file.fileno(), nbytes, total % 2**64)


def chill(fd: int) -> None:
    """Drop what the page cache has of a file, and nobody has mapped."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def opened_directly(path: str | Path) -> Iterator[int]:
    """Open a file past the page cache; a descriptor."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise Unmeasurable(f"no direct I/O where temporary files go: {error}") from None
    try:
        yield fd
    finally:
        os.close(fd)


class Memory(Protocol):
    """Memory that somebody pages: this library, or a baseline."""

    @property
    def address(self) -> int:
        """Where it begins."""

    @property
    def faults(self) -> int:
        """Faults served so far."""


@dataclass(frozen=True, slots=True)
class Paged:
    """Memory that this library pages."""

    pager: Pager

    @property
    def address(self) -> int:
        return self.pager.address

    @property
    def faults(self) -> int:
        return self.pager.counters()["faults"]


@contextmanager
def paged(
    file: CachedFile,
    block_size: int,
    *,
    limit: int = 0,
    mode: str = "r",
    direct: bool = False,
) -> Iterator[Paged]:
    """Page a file as `PagedMemory` does by default."""
    pager = Pager(
        file.fd,
        file.nbytes,
        b"benchmark",
        mode=_MODES[mode],
        block_size=block_size,
        limit=limit,
        timeout_ns=_STORE_TIMEOUT_NS,
        read_ahead=True,
        spill_directory=os.fsencode(tempfile.gettempdir()),
        direct=direct,
    )
    try:
        yield Paged(pager)
    finally:
        pager.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where threads may run, and what is the time there.

    Attributes
    ----------
    name : str
        What the table calls it.
    here : callable
        Gives a context in which the calling thread, and those it starts, stay there.
    clock : callable
        Nanoseconds. Of threads that share one CPU somebody always runs, so that their CPU time is
        the time that passes, without what else the machine does.
    """

    name: str
    here: Callable[[], AbstractContextManager[object]]
    clock: Callable[[], int]


_ONE_CPU = Place("one CPU", pinned, time.process_time_ns)
_FREE = Place("free", free, time.perf_counter_ns)


def places() -> list[Place]:
    """Return the ways to run on this machine: all threads on one CPU, and on any."""
    with free():
        several = len(os.sched_getaffinity(0)) > 1
    return [_ONE_CPU, _FREE] if several else [_ONE_CPU]


class Chunks:
    """Offsets of words in random blocks, each block once, a chunk at a time.

    Parameters
    ----------
    nbytes, block_size : int
        Of the memory.
    seed : int
        What is compared should meet different blocks in different orders.
    """

    def __init__(self, nbytes: int, block_size: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        blocks = random.permutation(nbytes // block_size).astype(np.uint64)
        words = random.integers(block_size // _WORD, size=len(blocks), dtype=np.uint64)
        self._offsets: Words = blocks * np.uint64(block_size) + words * np.uint64(_WORD)
        self._next = 0

    def take(self, count: int) -> Words:
        """Return the next offsets."""
        chunk = self._offsets[self._next : self._next + count]
        assert len(chunk) == count, "no blocks left that were not touched"
        self._next += count
        return chunk


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the job.

    Attributes
    ----------
    name : str
        Under which its measurements are returned.
    measure : callable
        Does the job once, and gives nanoseconds an operation.
    """

    name: str
    measure: Callable[[], float]


def timed(job: Callable[[], int], expected: int, place: Place, operations: int) -> float:
    """Do a job, check its result, and give nanoseconds an operation."""
    began = place.clock()
    result = job()
    took = place.clock() - began
    assert result == expected, "paged memory has other content than the file"
    return took / operations


def in_turn(ways: Sequence[Way], rounds: int) -> dict[str, list[float]]:
    """Measure all ways, round after round; each round begins with another one.

    The first round warms up, and does not count.
    """
    samples: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        first = number % len(ways)
        for way in (*ways[first:], *ways[:first]):
            took = way.measure()
            if number:
                samples[way.name].append(took)
    return samples


Samples = Mapping[str, Sequence[float]]


def _ratio(
    samples: Samples, subject: str, baseline: str, target: float | None, note: str, at_least: bool
) -> Finding:
    ours, theirs = samples[subject], samples[baseline]
    over, under = (theirs, ours) if at_least else (ours, theirs)
    return Finding(
        subject,
        baseline,
        spread([one / other for one, other in zip(over, under, strict=True)]),
        target,
        note=note,
        subject_ns=spread(ours),
        baseline_ns=spread(theirs),
        at_least=at_least,
    )


def cost(
    samples: Samples, subject: str, baseline: str, target: float | None, note: str = ""
) -> Finding:
    """Return how much longer the subject takes than the baseline, with the most it may."""
    return _ratio(samples, subject, baseline, target, note, at_least=False)


def speed(
    samples: Samples, subject: str, baseline: str, target: float | None, note: str = ""
) -> Finding:
    """Return how much faster the subject is than the baseline, with the least it should be."""
    return _ratio(samples, subject, baseline, target, note, at_least=True)


def compared(
    jobs: Mapping[str, Callable[[], int]],
    what: str,
    operations: int,
    place: Place,
    passes: int,
    target: float | None,
    note: str = "",
) -> Finding:
    """Measure two jobs in turn, each of so many operations, which it returns: our way, then theirs.

    The finding is how much faster ours is.
    """
    with place.here():
        ways = [
            Way(f"{name}, {what}", partial(timed, job, operations, place, operations))
            for name, job in jobs.items()
        ]
        samples = in_turn(ways, passes)
    return speed(samples, ways[0].name, ways[1].name, target, note)

"""Paging, tried on a source: touches its blocks in a pattern and measures what happens.

Nothing here prints. Blocks are touched whole: every byte is read, with ``write`` also written, with
what was read, so that the contents stay as they are.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemove.paging.options import Mode, checked
from pagemove.paging.region import PagedMemory
from pagemove.paging.sources import Source
from pagemove.paging.stats import PagingStats
from pagemove.stores.base import Store

#: Blocks from one touch to the next of a strided pattern.
STRIDE = 4

#: Seconds from one sample to the next.
SAMPLE_SECONDS = 0.1

#: The fewest and the most seconds that it may take; the most are a year.
FEWEST_SECONDS, MOST_SECONDS = 0.1, 31_536_000.0

_RANDOM_AT_ONCE = 4096
# What `pagemove page` calls the arguments of a region.
_OPTIONS = {"resident_limit": "--limit", "block_size": "--block"}


class Pattern(StrEnum):
    """An order in which blocks can be touched."""

    SEQUENTIAL = "sequential"
    RANDOM = "random"
    STRIDED = "strided"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be tried.

    Attributes
    ----------
    source : Source
        On what: a file, or a URL.
    limit, block_size : int
        Bytes, as `PagedMemory` takes them.
    pattern : Pattern
        In which order.
    write : bool
        Write to every byte what it is already.
    seconds : float
        How long.
    """

    source: Source
    limit: int
    block_size: int
    pattern: Pattern
    write: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """How far it has come.

    Attributes
    ----------
    seconds : float
        Since the start.
    touches, nbytes : int
        Blocks touched, and bytes in them.
    stats : PagingStats
        Of the region.
    """

    seconds: float
    touches: int
    nbytes: int
    stats: PagingStats


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two samples, for each second.

    Attributes
    ----------
    faults : float
        Faults a second.
    gigabytes : float
        10**9 bytes touched a second.
    hit_rate : float
        Share of touches that found their block in place; 1 is all.
    """

    faults: float
    gigabytes: float
    hit_rate: float

    @classmethod
    def between(cls, earlier: Sample, later: Sample) -> Rates:
        """Compute them."""
        seconds = max(later.seconds - earlier.seconds, 1e-9)
        touches = max(later.touches - earlier.touches, 1)
        faults = later.stats.faults - earlier.stats.faults
        return cls(
            faults=faults / seconds,
            gigabytes=(later.nbytes - earlier.nbytes) / seconds / 1e9,
            hit_rate=min(max(1 - faults / touches, 0.0), 1.0),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes
    ----------
    plan : Plan
        What was tried.
    nbytes : int
        Length of what was paged.
    samples : tuple of Sample
        The first from before the first touch, the last from after the last one.
    flush_seconds : float
        How long saving what was written took, after the last sample.
    stats : PagingStats
        After that.
    interrupted : bool
        Whether it was interrupted.
    """

    plan: Plan
    nbytes: int
    samples: tuple[Sample, ...]
    flush_seconds: float
    stats: PagingStats
    interrupted: bool

    @property
    def rates(self) -> Rates:
        """Of the whole run."""
        return Rates.between(self.samples[0], self.samples[-1])

    @property
    def most_resident(self) -> int:
        """The most bytes that any sample found in memory."""
        return max(sample.stats.resident_nbytes for sample in self.samples)


def planned(
    source: Source, limit: str, block_size: str, pattern: Pattern, *, write: bool, seconds: float
) -> tuple[Plan, int]:
    """Check what a user asks for on the command line; return the plan and the length of the source.

    Raises
    ------
    ImportError, OSError, TypeError, ValueError
        As `Source.open` and `PagedMemory`.
    """
    if not FEWEST_SECONDS <= seconds <= MOST_SECONDS:
        raise ValueError(
            f"--seconds must be a number from {FEWEST_SECONDS} to {MOST_SECONDS:.0f} (a year), "
            f"not {seconds}"
        )
    with _opened(source, write) as store:
        found = checked(
            store.nbytes,
            resident_limit=limit,
            block_size=block_size,
            mode="r+" if write else "r",
            prefetch="auto",
            store_timeout=0,
            name=None,
            called=_OPTIONS,
        )
        plan = Plan(source, found.limit, found.block_size, pattern, write, seconds)
        return plan, store.nbytes


def _opened(source: Source, write: bool) -> Store:
    store = source.open(writable=write)
    if write and not store.writable:
        store.close()
        raise ValueError(
            f"{source} can only be read: no --write; what it holds can be written where it is a "
            "file, or an array in Redis"
        )
    return store


def blocks_in_order(pattern: Pattern, count: int, seed: int = 2014) -> Iterator[int]:
    """Return block numbers below `count` in an order, without end."""
    match pattern:
        case Pattern.SEQUENTIAL:
            return itertools.cycle(range(count))
        case Pattern.RANDOM:
            return _random(count, np.random.default_rng(seed))
        case Pattern.STRIDED:
            starts = (range(start, count, STRIDE) for start in range(STRIDE))
            return itertools.cycle(itertools.chain.from_iterable(starts))


def _random(count: int, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.integers(count, size=_RANDOM_AT_ONCE).tolist()


def run(
    plan: Plan,
    observe: Callable[[Sample], object],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Try it until the time is up, or until Ctrl-C.

    Parameters
    ----------
    plan : Plan
        What.
    observe : callable
        Is given a sample about every `SAMPLE_SECONDS`, by the touching thread between two touches.
    clock : callable
        Seconds.

    Raises
    ------
    StoreError
        What was written could not be saved; the store has what it had.
    ImportError, OSError, TypeError, ValueError
        As `Source.open` and `PagedMemory`.
    """
    mode: Mode = "r+" if plan.write else "r"
    with (
        _opened(plan.source, plan.write) as store,
        PagedMemory(
            store, resident_limit=plan.limit, block_size=plan.block_size, mode=mode
        ) as region,
    ):
        samples: list[Sample] = []
        interrupted = False
        started = clock()

        def sample(touches: int, nbytes: int) -> None:
            samples.append(Sample(clock() - started, touches, nbytes, region.stats()))
            observe(samples[-1])

        try:
            _touch_all(plan, region, sample, clock)
        except KeyboardInterrupt:
            interrupted = True
        ended = clock()
        region.flush()
        return Outcome(
            plan=plan,
            nbytes=region.nbytes,
            samples=tuple(samples),
            flush_seconds=clock() - ended,
            stats=region.stats(),
            interrupted=interrupted,
        )


def _touch_all(
    plan: Plan,
    region: PagedMemory,
    sample: Callable[[int, int], None],
    clock: Callable[[], float],
) -> None:
    """Touch blocks until the time is up; take a sample at the beginning, now and then, and last."""
    contents = region.asarray(np.uint8)
    touch = _rewrite if plan.write else _read
    touches = nbytes = 0
    sample(touches, nbytes)
    now = clock()
    end, next_sample = now + plan.seconds, now + SAMPLE_SECONDS
    try:
        for number in blocks_in_order(plan.pattern, -(-region.nbytes // plan.block_size)):
            block = contents[number * plan.block_size :][: plan.block_size]
            touch(_as_words(block))
            touches, nbytes = touches + 1, nbytes + block.nbytes
            now = clock()
            if now >= end:
                return
            if now >= next_sample:
                sample(touches, nbytes)
                next_sample = now + SAMPLE_SECONDS
    finally:
        sample(touches, nbytes)


def _as_words(block: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """View a block as words, which are faster to go through, unless it ends within one."""
    return block if block.nbytes % 8 else block.view(np.uint64)


def _read(items: npt.NDArray[Any]) -> None:
    np.add.reduce(items)


def _rewrite(items: npt.NDArray[Any]) -> None:
    np.bitwise_or(items, 0, out=items)

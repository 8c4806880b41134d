"""Blocks read at a limit of a quarter, against what LRU would read for the same touches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks._baselines import touch_each
from benchmarks._measure import Effort, Finding, free, spread
from benchmarks._paging import QUARTER, CachedFile, cached_file, paged
from benchmarks._report import run_alone

_BLOCK = 64 << 10
_MOST = 115
_PLACES = 64
_HOT = 0.8

Trace = npt.NDArray[np.int64]


def _lru(trace: Trace, frames: int) -> int:
    """Return blocks read if the one unused for longest leaves first."""
    resident: OrderedDict[int, None] = OrderedDict()
    missed = 0
    for block in trace.tolist():
        if block in resident:
            resident.move_to_end(block)
            continue
        missed += 1
        resident[block] = None
        if len(resident) > frames:
            resident.popitem(last=False)
    return missed


def _searches(random: np.random.Generator, blocks: int, count: int) -> Trace:
    """Return the blocks that binary searches touch, each of them from the middle."""
    wanted = random.integers(blocks * _PLACES, size=count)
    low, high = np.zeros_like(wanted), np.full_like(wanted, blocks * _PLACES)
    steps = []
    while (low < high).any():
        middle = (low + high) // 2
        steps.append(np.where(low < high, middle // _PLACES, -1))
        right = middle < wanted
        low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
    touched = np.stack(steps, axis=1).ravel()
    return touched[touched >= 0]


def _traces(blocks: int, frames: int) -> Iterator[tuple[str, Trace]]:
    random = np.random.default_rng(blocks)
    length = 25 * blocks
    weights = np.arange(1, blocks + 1) ** -0.99
    places = random.permutation(blocks)
    yield "Zipf 0.99", places[random.choice(blocks, length, p=weights / weights.sum())]
    yield "binary search", _searches(random, blocks, 2 * blocks)
    hot = places[: frames // 2][random.integers(frames // 2, size=length)]
    others = random.integers(blocks, size=length)
    yield "hot set among others", np.where(random.random(length) < _HOT, hot, others)
    scanned = hot.copy()
    scanned[::5] = np.arange(len(scanned[::5])) % blocks
    yield "hot set under a scan", scanned
    yield "loop over 1.1 times the limit", np.tile(np.arange(frames * 11 // 10), 20)


def _read(file: CachedFile, trace: Trace, frames: int) -> tuple[int, int]:
    """Return blocks read, and touches that found a block on standby."""
    with paged(file, _BLOCK, limit=frames * _BLOCK) as memory:
        touch_each(memory.address, trace.astype(np.uint64) * np.uint64(_BLOCK))
        counters = memory.pager.counters()
    return counters["bytes_read"] // _BLOCK, counters["soft_faults"]


def measure(effort: Effort) -> list[Finding]:
    findings = []
    with cached_file(effort.file) as file, free():
        blocks = file.nbytes // _BLOCK
        frames = blocks // QUARTER
        for name, trace in _traces(blocks, frames):
            reference = _lru(trace, frames)
            done = [_read(file, trace, frames) for _ in range(3)]
            rescued = spread([100 * found / len(trace) for _, found in done]).median
            findings.append(
                Finding(
                    f"blocks read, {name}",
                    "LRU on the same touches",
                    spread([100 * read / reference for read, _ in done]),
                    _MOST,
                    unit="%",
                    note=f"{100 * reference / len(trace):.1f} % of touches miss with LRU; "
                    f"{rescued:.1f} % were faults without I/O",
                )
            )
    return findings


if __name__ == "__main__":
    run_alone(measure)

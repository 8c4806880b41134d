"""Sequences of blocks that programs touch, and what LRU would read for them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Trace = npt.NDArray[np.int64]

#: Places to search in a block.
_PLACES = 64


def lru(trace: Trace, frames: int) -> int:
    """Return the blocks that are read if the one unused for longest leaves first."""
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


def zipf(blocks: int, length: int, exponent: float = 0.99, seed: int = 1) -> Trace:
    """Return blocks in no order of which a few are touched most of the time."""
    random = np.random.default_rng(seed)
    weights = np.arange(1, blocks + 1) ** -exponent
    return random.permutation(blocks)[random.choice(blocks, length, p=weights / weights.sum())]


def binary_search(blocks: int, searches: int, seed: int = 1) -> Trace:
    """Return the blocks that searches for random places touch, as by `bisect`."""
    wanted = np.random.default_rng(seed).integers(blocks * _PLACES, size=searches)
    low, high = np.zeros_like(wanted), np.full_like(wanted, blocks * _PLACES)
    steps = []
    while (low < high).any():
        middle = (low + high) // 2
        steps.append(np.where(low < high, middle // _PLACES, -1))
        right = middle < wanted
        low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
    touched = np.stack(steps, axis=1).ravel()
    return touched[touched >= 0]


def hot_and_scan(blocks: int, frames: int, length: int, seed: int = 1) -> Trace:
    """Return touches of a hot set of half the frames, and a scan of all blocks in between."""
    random = np.random.default_rng(seed)
    hot = random.permutation(blocks)[: frames // 2]
    touched = hot[random.integers(len(hot), size=length)]
    touched[::5] = np.arange(len(touched[::5])) % blocks
    return touched


def hot_and_others(blocks: int, frames: int, length: int, seed: int = 1) -> Trace:
    """Return touches of a hot set of half the frames, and one in five of any block."""
    random = np.random.default_rng(seed)
    hot = random.permutation(blocks)[: frames // 2]
    others = random.integers(blocks, size=length)
    return np.where(
        random.random(length) < 0.8, hot[random.integers(len(hot), size=length)], others
    )


def drifting(blocks: int, frames: int, length: int, seed: int = 1) -> Trace:
    """Return touches of a working set that is exchanged block by block."""
    random = np.random.default_rng(seed)
    window = np.arange(length) * 3 * blocks // length
    return random.permutation(blocks)[
        (window + random.integers(frames * 4 // 5, size=length)) % blocks
    ]


def loop(count: int, rounds: int) -> Trace:
    """Return so many blocks in order, again and again."""
    return np.tile(np.arange(count), rounds)

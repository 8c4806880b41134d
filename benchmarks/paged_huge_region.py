"""A region of 1 TiB over a sparse file: the time to open it, and memory for its state."""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np

from benchmarks._baselines import touch_each
from benchmarks._measure import Effort, Finding, Unmeasurable, spread
from benchmarks._paging import CachedFile, paged
from benchmarks._report import run_alone

_NBYTES = 1 << 40
_USUAL_BLOCK = 64 << 10
_SMALLEST_BLOCK = 4096
_TARGET_MS = 100
_TARGET_BYTES = 16
_STEPS = 10


def _time_to_open(file: CachedFile) -> float:
    began = time.perf_counter_ns()
    with paged(file, _USUAL_BLOCK):
        return (time.perf_counter_ns() - began) / 1e6


def _state(file: CachedFile, touched: int) -> list[float]:
    """Return bytes of state a block, at several numbers of blocks touched."""
    random = np.random.default_rng(1)
    blocks = random.choice(_NBYTES // _SMALLEST_BLOCK, touched, replace=False)
    offsets = blocks.astype(np.uint64) * np.uint64(_SMALLEST_BLOCK)
    found, done = [], 0
    with paged(file, _SMALLEST_BLOCK) as memory:
        for some in np.array_split(offsets, _STEPS):
            touch_each(memory.address, some)
            done += len(some)
            found.append(memory.pager.state_bytes() / done)
    return found


def measure(effort: Effort) -> list[Finding]:
    with tempfile.TemporaryFile() as sparse:
        try:
            os.ftruncate(sparse.fileno(), _NBYTES)
        except OSError as error:
            raise Unmeasurable(f"no sparse file of 1 TiB here: {error.strerror}") from None
        file = CachedFile(sparse.fileno(), _NBYTES, 0)
        opening = [_time_to_open(file) for _ in range(effort.passes)]
        state = _state(file, effort.touched)
    return [
        Finding("open it", "the clock", spread(opening), _TARGET_MS, unit="ms"),
        Finding(
            f"state of a block, {effort.touched:,} blocks of 4 KiB touched",
            "no block touched",
            spread([max(state)]),
            _TARGET_BYTES,
            unit="bytes",
            note=f"the most that it was on the way there; {state[-1]:.1f} at its end",
        ),
    ]


if __name__ == "__main__":
    run_alone(measure)

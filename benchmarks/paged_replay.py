"""A cold start, 1000 scattered blocks of a store 2 ms away, replayed against not."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._baselines import touch_each
from benchmarks._measure import Effort, Finding, free
from benchmarks._paging import Way, in_turn, speed
from benchmarks._report import run_alone
from benchmarks._stores import Instant
from pagemove import PagedMemory

_BLOCK = 64 << 10
_DELAY = 0.002
_BLOCKS = 1000
_SPREAD = 64
_TARGET = 5.0


def measure(effort: Effort) -> list[Finding]:
    count = min(_BLOCKS, effort.touched)
    store = Instant(count * _SPREAD * _BLOCK, _DELAY)
    random = np.random.default_rng(1)
    numbers = random.choice(count * _SPREAD, size=count, replace=False).astype(np.uint64)
    offsets = numbers * np.uint64(_BLOCK)
    starting: list[float] = []

    def start(**how: Path) -> float:
        began = time.perf_counter_ns()
        with PagedMemory(store, block_size=_BLOCK, **how) as region:
            up = time.perf_counter_ns()
            touch_each(region.address, offsets)
            took = time.perf_counter_ns() - up
            assert region.stats().errors == 0
        starting.append((up - began) / 1e9)
        return took / count

    with tempfile.TemporaryDirectory() as folder, free():
        record = Path(folder) / "order.npy"
        with PagedMemory(store, block_size=_BLOCK) as region:
            region.record(record)
            touch_each(region.address, offsets)
        subject, baseline = f"{count} blocks, replayed; free", "not replayed"
        ways = [Way(baseline, start), Way(subject, lambda: start(replay=record))]
        samples = in_turn(ways, max(effort.passes // 3, 1))
    note = (
        f"16 requests at a time; the {np.median(starting):.2f} s until the region is made "
        "are not counted"
    )
    return [speed(samples, subject, baseline, _TARGET, note)]


if __name__ == "__main__":
    run_alone(measure)

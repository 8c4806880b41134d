"""What a store that is far away gives by block size, in order and at random."""

from __future__ import annotations

import time

import numpy as np

from benchmarks._baselines import touch_each
from benchmarks._measure import Effort, Finding, free, spread
from benchmarks._report import run_alone
from benchmarks._stores import Instant, touch_starts, warmed
from pagemove import PagedMemory

_DELAYS = (0.0002, 0.001, 0.005)
_BLOCK_SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20)
_TOUCHES = 64


def _measure(delay: float, block: int, nbytes: int, rounds: int) -> list[Finding]:
    store = Instant(nbytes, delay)
    random = np.random.default_rng(1)
    rates, waits = [], []
    with PagedMemory(store, block_size=block) as region:
        warmed(region)
        job = touch_starts(region.address, nbytes, block)
        for number in range(rounds + 1):
            region.evict()
            began = time.perf_counter()
            job()
            rate = nbytes / (time.perf_counter() - began) / 1e6
            region.evict()
            blocks = random.choice(nbytes // block, min(_TOUCHES, nbytes // block // 2), False)
            wait = np.median(touch_each(region.address, blocks.astype(np.uint64) * block))
            if number:
                rates.append(rate)
                waits.append(float(wait) / 1000)
    name = f"{delay * 1000:g} ms, {block >> 10} KiB blocks"
    baseline = "each read waits so long"
    return [
        Finding(f"{name}, in order", baseline, spread(rates), None, unit="MB/s"),
        Finding(f"{name}, at random, a touch", baseline, spread(waits), None, unit="us"),
    ]


def measure(effort: Effort) -> list[Finding]:
    # As many blocks as read-ahead can show what it does with.
    nbytes = effort.file // 4
    rounds = max(effort.passes // 3, 1)
    with free():
        return [
            finding
            for delay in _DELAYS
            for block in _BLOCK_SIZES
            for finding in _measure(delay, block, nbytes, rounds)
        ]


if __name__ == "__main__":
    run_alone(measure)

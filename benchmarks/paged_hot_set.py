"""How much of a hot set of half the limit survives a sequential scan of the whole file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks._baselines import Words, sum_words, touch_each
from benchmarks._measure import Effort, Finding, free, spread
from benchmarks._paging import QUARTER, CachedFile, cached_file, paged
from benchmarks._report import run_alone

_BLOCKS = (64 << 10, 4096)
_TARGET = 90
_TOUCHES = 4


def _offsets(blocks: npt.NDArray[np.int64], block: int) -> Words:
    return blocks.astype(np.uint64) * np.uint64(block)


def _survive(file: CachedFile, block: int, times: int) -> tuple[list[float], list[float]]:
    """Return per cent of touches that did not fault, and that faulted on what was still there."""
    random = np.random.default_rng(block)
    limit = file.nbytes // QUARTER
    kept, rescued = [], []
    with paged(file, block, limit=limit) as memory:
        for _ in range(times):
            hot = random.permutation(file.nbytes // block)[: limit // block // 2]
            for _ in range(_TOUCHES):
                random.shuffle(hot)
                touch_each(memory.address, _offsets(hot, block))
            assert sum_words(memory.address, file.nbytes) == file.total
            before = memory.pager.counters()
            random.shuffle(hot)
            touch_each(memory.address, _offsets(hot, block))
            after = memory.pager.counters()
            faults, saved = (after[name] - before[name] for name in ("faults", "soft_faults"))
            kept.append(100 * (1 - faults / len(hot)))
            rescued.append(100 * saved / len(hot))
    return kept, rescued


def measure(effort: Effort) -> list[Finding]:
    findings = []
    with cached_file(effort.file) as file, free():
        for block in _BLOCKS:
            kept, rescued = _survive(file, block, effort.passes)
            count = file.nbytes // QUARTER // block // 2
            findings.append(
                Finding(
                    f"touches of it after the scan without a fault, blocks of {block >> 10} KiB",
                    f"all its touches; {count:,} blocks, each touched {_TOUCHES} times before",
                    spread(kept),
                    _TARGET,
                    unit="%",
                    note=f"{spread(rescued).median:.0f} % were evicted, but still in memory",
                    at_least=True,
                )
            )
    return findings


if __name__ == "__main__":
    run_alone(measure)

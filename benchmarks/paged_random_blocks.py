"""Random 64 KiB blocks at a limit of a quarter, a fault, against paging by copies."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import numpy as np

from benchmarks._baselines import Words, bare_loop, touch_each
from benchmarks._measure import Effort, Finding, spread
from benchmarks._paging import (
    QUARTER,
    CachedFile,
    Memory,
    Place,
    Way,
    cached_file,
    cost,
    in_turn,
    paged,
    places,
)
from benchmarks._report import run_alone

_BLOCK = 64 << 10
_TARGET_READS = 0.65
_TARGET_WRITES = 0.75
_WORD = 8


class _Touching:
    """Touches random blocks, and counts its faults."""

    def __init__(
        self,
        file: CachedFile,
        memory: Memory,
        *,
        place: Place,
        write: bool,
        seed: int,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._memory, self._write = memory, write
        self._clock = place.clock
        self._blocks = file.nbytes // _BLOCK
        self._rounds = 0
        self._all_touches, self._all_faults = 0, 0
        self._medians: list[float] = []
        self.written: dict[int, int] = {}

    def _offsets(self, count: int) -> Words:
        blocks = self._random.integers(self._blocks, size=count, dtype=np.uint64)
        words = self._random.integers(_BLOCK // _WORD, size=count, dtype=np.uint64)
        offsets: Words = blocks * np.uint64(_BLOCK) + words * np.uint64(_WORD)
        return offsets

    def measure(self, count: int) -> float:
        """Touch so many blocks; return nanoseconds a fault."""
        offsets = self._offsets(count)
        self._rounds += 1
        value = self._rounds if self._write else None
        before, began = self._memory.faults, self._clock()
        each = touch_each(self._memory.address, offsets, write=value)
        took = self._clock() - began
        faults = self._memory.faults - before
        # The others found their block there, and took next to no time.
        self._medians.append(float(np.median(np.sort(each)[-faults:])))
        self._all_touches += count
        self._all_faults += faults
        if value:
            self.written.update(dict.fromkeys(offsets.tolist(), value))
        return took / max(faults, 1)

    @property
    def share(self) -> float:
        """Faults a touch."""
        return self._all_faults / self._all_touches

    @property
    def median(self) -> float:
        """What the touching thread waits in the middle, in microseconds."""
        return spread(self._medians).median / 1000


def _check(file: CachedFile, written: dict[int, int]) -> None:
    """Fail unless the file holds what was written last, word for word."""
    with open(file.fd, "rb", closefd=False) as opened:
        words = np.memmap(opened, np.uint64, "r")
    offsets = np.fromiter(written, np.int64, len(written))
    values = np.fromiter(written.values(), np.uint64, len(written))
    assert (words[offsets // _WORD] == values).all(), "a write was lost"


def _compare(
    place: Place, mode: str, write: bool, files: tuple[CachedFile, CachedFile], effort: Effort
) -> Finding:
    # Each its own: blocks are written back whole.
    file, other = files
    limit = file.nbytes // QUARTER
    subject = f"{'writes' if write else 'reads'}, mode {mode}; {place.name}"
    writable = mode != "r"
    baseline = f"C loop: UFFDIO_COPY, {'write-protect, ' if writable else ''}MADV_DONTNEED"
    with (
        closing(bare_loop(other.fd, other.nbytes, _BLOCK, limit=limit, writable=writable)) as bare,
        paged(file, _BLOCK, limit=limit, mode=mode) as memory,
    ):
        job = partial(_Touching, place=place, write=write)
        ours = job(file, memory, seed=1)
        theirs = job(other, bare, seed=2)
        # As often as there are blocks: what is measured is the steady state.
        for one in (ours, theirs):
            one.measure(file.nbytes // _BLOCK)
        ways = [
            Way(subject, lambda: ours.measure(effort.pages)),
            Way(baseline, lambda: theirs.measure(effort.pages)),
        ]
        samples = in_turn(ways, effort.passes)
        if write:
            assert memory.pager.flush() == 0
            _check(file, ours.written)
    target = _TARGET_WRITES if write else _TARGET_READS if mode == "r" else None
    note = (
        f"faults a touch: {ours.share:.2f}, and {theirs.share:.2f}; "
        f"half are over in {ours.median:.0f} us, and {theirs.median:.0f}"
    )
    return cost(samples, subject, baseline, target, note)


def measure(effort: Effort) -> list[Finding]:
    findings = []
    with cached_file(effort.file) as file, cached_file(effort.file) as other:
        for place in places():
            for mode, write in (("r", False), ("r+", True), ("r+", False)):
                with place.here():
                    findings.append(_compare(place, mode, write, (file, other), effort))
    return findings


if __name__ == "__main__":
    run_alone(measure)

"""How much memory `move_many` takes beside its arguments, for 1,000,000 indices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks._measure import Effort, Finding, fresh, spread
from benchmarks._report import run_alone
from pagemove import PAGE_SIZE, Memory, move_many

_TARGET_MIB = 32
_RING = 1025
_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak(count: int, dtype: str) -> int:
    """Move pages round a ring with one hole; return the growth of the resident peak, in bytes.

    Each move fills the hole that the one before has left, so that a small buffer serves any number
    of moves. To be called in a process that has no other use.
    """
    holes = (_RING - 1 - np.arange(count + 1)) % _RING
    destinations, sources = holes[:-1].astype(dtype), holes[1:].astype(dtype)
    with Memory(_RING * PAGE_SIZE) as ring:
        numbers = ring.asarray(np.int64)[:: PAGE_SIZE // 8]
        numbers[:-1] = np.arange(1, _RING)
        # Once around: what the library needs only once is there, and the hole is where it was.
        move_many(ring, ring, destinations[:_RING], sources[:_RING])
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        before = _status("VmRSS")
        moved = move_many(ring, ring, destinations, sources)
        grown = _status("VmHWM") - before
        assert moved == count * PAGE_SIZE
        assert sorted(numbers.tolist()) == list(range(_RING)), "a page was lost"
        del numbers
    return grown


def measure(effort: Effort) -> list[Finding]:
    findings = []
    count, times = max(effort.indices, _RING), max(1, effort.rounds // 40)
    for dtype in ("int64", "int32"):
        grown = [
            fresh("benchmarks.memory_for_indices", "peak", count, dtype) / 2**20
            for _ in range(times)
        ]
        findings.append(
            Finding(
                f"{count:,} indices of {dtype}",
                "resident memory before the call",
                spread(grown),
                _TARGET_MIB,
                unit="MiB",
            )
        )
    return findings


if __name__ == "__main__":
    run_alone(measure)

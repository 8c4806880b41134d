"""Twenty regions over stores in Python: the time to open each, and how many processes they take."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks._measure import Effort, Finding, spread
from benchmarks._report import run_alone
from benchmarks._stores import Instant
from pagemove import PagedMemory

_REGIONS = 20
_OWN = 4
_TARGET_MS = 20
_TARGET_RATIO = 0.1


def _processes() -> int:
    mine = str(os.getpid()).encode()
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        count += words[-2:-1] == [mine] and b"pagemove.paging.helper" in b"".join(words)
    return count


def _open(count: int, *, isolated: bool) -> tuple[float, int]:
    """Return the median ms of each after the first, and how many processes there are then."""
    took = []
    with ExitStack() as stack:
        for _ in range(count):
            began = time.perf_counter_ns()
            stack.enter_context(PagedMemory(Instant(1 << 20), isolated=isolated))
            took.append((time.perf_counter_ns() - began) / 1e6)
        return sorted(took[1:])[len(took) // 2], _processes()


def measure(effort: Effort) -> list[Finding]:
    shared, own, processes = [], [], []
    for _ in range(max(3, effort.rounds // 10)):
        each, count = _open(_REGIONS, isolated=False)
        shared.append(each)
        processes.append(float(count))
        own.append(_open(_OWN, isolated=True)[0])
    return [
        Finding("open each after the first", "the clock", spread(shared), _TARGET_MS, unit="ms"),
        Finding(
            "open each after the first",
            "a process for each",
            spread([one / other for one, other in zip(shared, own, strict=True)]),
            _TARGET_RATIO,
            subject_ns=spread([one * 1e6 for one in shared]),
            baseline_ns=spread([one * 1e6 for one in own]),
        ),
        Finding(f"{_REGIONS} regions", "none", spread(processes), 1, unit="processes"),
    ]


if __name__ == "__main__":
    run_alone(measure)

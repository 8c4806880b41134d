"""Fork, and exec in the child, of a process with 300 regions over files; and `subprocess`."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks._measure import Effort, Finding, free, spread
from benchmarks._report import run_alone
from pagemove import PagedMemory, stores

_REGIONS = 300
_NBYTES = 1 << 20
_TARGET_MS = 1.0
_TARGET_SUBPROCESS = 1.05
_PROGRAM = "/bin/true"


def _fork_and_exec() -> tuple[float, float]:
    """Return the milliseconds that pass, and those of CPU time of both processes."""
    began, used = time.perf_counter_ns(), time.thread_time_ns()
    child = os.fork()
    if not child:
        try:
            os.execv(_PROGRAM, [_PROGRAM])
        finally:
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    theirs = (usage.ru_utime + usage.ru_stime) * 1e3
    used = time.thread_time_ns() - used
    return (time.perf_counter_ns() - began) / 1e6, used / 1e6 + theirs


def _subprocess() -> float:
    began = time.perf_counter_ns()
    assert subprocess.run([_PROGRAM], check=False).returncode == 0
    return (time.perf_counter_ns() - began) / 1e6


def _medians(times: int) -> tuple[float, float, float]:
    forks = [_fork_and_exec() for _ in range(times)]
    passed, used = (sorted(each[at] for each in forks)[times // 2] for at in range(2))
    return passed, used, sorted(_subprocess() for _ in range(times))[times // 2]


def measure(effort: Effort) -> list[Finding]:
    count = min(_REGIONS, effort.pages)
    times = max(effort.rounds // 4, 3)
    clock, used, with_them, without = [], [], [], []
    with tempfile.TemporaryDirectory() as name, free():
        path = Path(name, "file")
        path.write_bytes(b"x" * _NBYTES)
        for _ in range(max(effort.passes, 3)):
            before = _medians(times)
            with ExitStack() as stack:
                for _ in range(count):
                    store = stack.enter_context(stores.FileStore(path))
                    region = stack.enter_context(PagedMemory(store))
                    assert memoryview(region)[-1] == ord("x")
                there = _medians(times)
            clock.append(max(there[0] - before[0], 0.0) / count * 10)
            used.append(max(there[1] - before[1], 0.0) / count * 10)
            without.append(before[2])
            with_them.append(there[2])
    what = f"with {count} regions that were touched"
    each = f"fork and exec {what}: what ten add"
    return [
        Finding(each, "the clock", spread(clock), _TARGET_MS, unit="ms"),
        Finding(each, "CPU time", spread(used), _TARGET_MS, unit="ms"),
        Finding(
            f"subprocess.run {what}",
            "without them",
            spread([one / other for one, other in zip(with_them, without, strict=True)]),
            _TARGET_SUBPROCESS,
            subject_ns=spread([each * 1e6 for each in with_them]),
            baseline_ns=spread([each * 1e6 for each in without]),
        ),
    ]


if __name__ == "__main__":
    run_alone(measure)

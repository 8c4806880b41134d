"""Fork of a process with arrays at their limit, twice as large, and a pass over them after that."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

import pagemove
from benchmarks._measure import Effort, Finding, free, spread
from benchmarks._report import run_alone
from pagemove._native.pager import codec

_TARGET_FORK = 1.5
_TARGET_PASS = 1.3
_TARGET_SUBPROCESS = 1.05
_NOHUGEPAGE = 15
_TIMES = 9
_PROGRAM = "/bin/true"


def _fork() -> float:
    """Return the nanoseconds that the parent is in fork."""
    began = time.perf_counter_ns()
    child = os.fork()
    if not child:
        os._exit(0)
    took = time.perf_counter_ns() - began
    assert os.waitpid(child, 0)[1] == 0
    return took


def _subprocess() -> float:
    """Return the median of some: what was changed last is still being compressed meanwhile."""
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter_ns()
        assert subprocess.run([_PROGRAM], check=False).returncode == 0
        times.append(time.perf_counter_ns() - began)
    return float(sorted(times)[_TIMES // 2])


@contextmanager
def _child() -> Iterator[None]:
    """Have a child that does nothing."""
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _pass(numbers: npt.NDArray[np.int64]) -> float:
    began = time.perf_counter_ns()
    numbers += 1
    return time.perf_counter_ns() - began


@contextmanager
def _ordinary(nbytes: int) -> Iterator[None]:
    """Have memory in small pages, as what is paged is."""
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(_NOHUGEPAGE)
        for at in range(0, nbytes, mmap.PAGESIZE):
            memory[at] = 1
        yield


def _finding(what: str, than: str, subject: list[float], base: list[float], most: float) -> Finding:
    return Finding(
        what,
        than,
        spread([one / other for one, other in zip(subject, base, strict=True)]),
        most,
        subject_ns=spread(subject),
        baseline_ns=spread(base),
    )


def measure(effort: Effort) -> list[Finding]:
    if codec() is None:
        return []
    limit = effort.file // 2
    times: dict[str, list[float]] = {}

    def note(name: str, took: float) -> None:
        times.setdefault(name, []).append(took)

    with free():
        for _ in range(max(effort.passes, 3)):
            note("bare", _subprocess())
            with _ordinary(limit):
                note("ordinary", _fork())
            with pagemove.paged_allocations(limit):
                numbers = np.arange(effort.file // 8)
                _pass(numbers)
                note("before", _pass(numbers))
                note("fork", _fork())
                note("ended", _pass(numbers))
                with _child():
                    note("alive", _pass(numbers))
                note("subprocess", _subprocess())
                del numbers
    size = f"{limit >> 20} MiB"
    return [
        _finding(
            f"fork with arrays at a limit of {size}",
            "as much ordinary memory, in small pages",
            times["fork"],
            times["ordinary"],
            _TARGET_FORK,
        ),
        _finding(
            f"`+= 1` over twice {size}, first after a child has ended",
            "before it was forked",
            times["ended"],
            times["before"],
            _TARGET_PASS,
        ),
        _finding(
            "the same while a child lives",
            "before it was forked",
            times["alive"],
            times["before"],
            _TARGET_PASS,
        ),
        _finding(
            "subprocess.run with such arrays",
            "without them",
            times["subprocess"],
            times["bare"],
            _TARGET_SUBPROCESS,
        ),
    ]


if __name__ == "__main__":
    run_alone(measure)

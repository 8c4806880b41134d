"""What all benchmarks share: how thorough to be, what they find, how ratios are taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pagemove._native import remap
from pagemove.measuring.endings import Unmeasurable
from pagemove.measuring.timing import Spread, Task, interleave, spread

__all__ = [
    "FULL",
    "QUICK",
    "TINY",
    "Disturbed",
    "Effort",
    "Finding",
    "Spread",
    "Task",
    "Unmeasurable",
    "free",
    "fresh",
    "on_both_kernels",
    "pinned",
    "ratios",
    "spread",
]


class Disturbed(Exception):  # noqa: N818 (a reason to measure again, not an error)
    """The kernel refused a move that it had no reason to refuse: its stale-EAGAIN defect."""


_ROOT = Path(__file__).resolve().parents[1]
_ALLOWED = os.sched_getaffinity(0)


@dataclass(frozen=True, slots=True)
class Effort:
    """How thorough to be.

    Attributes
    ----------
    rounds : int
        Measurements of each thing; of what takes a process of its own, a tenth of it.
    pages : int
        Pages that move one by one within one measurement; blocks that are touched likewise.
    huge_pages : int
        Huge pages likewise.
    run : int
        Pages of the long run.
    indices : int
        Length of the index arrays whose memory is measured.
    moves : int
        Scattered moves after which mappings are counted.
    passes : int
        Measurements of what goes through a whole file.
    long_file, file : int
        Bytes of the file that is summed from end to end, and of the one that is touched at random.
    touched : int
        Blocks of a sparse file that are touched.
    """

    rounds: int
    pages: int
    huge_pages: int
    run: int
    indices: int
    moves: int
    passes: int
    long_file: int
    file: int
    touched: int


_MIB = 1 << 20
FULL = Effort(
    rounds=201,
    pages=2048,
    huge_pages=16,
    run=4096,
    indices=1_000_000,
    moves=100_000,
    passes=21,
    long_file=1024 * _MIB,
    file=256 * _MIB,
    touched=100_000,
)
QUICK = replace(FULL, rounds=41, pages=1024, huge_pages=8, passes=7, touched=20_000)
TINY = Effort(
    rounds=3,
    pages=32,
    huge_pages=1,
    run=64,
    indices=2000,
    moves=500,
    passes=2,
    long_file=32 * _MIB,
    file=16 * _MIB,
    touched=200,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure.

    Attributes
    ----------
    subject, baseline : str
        What was measured, and against what.
    figure : Spread
        A ratio to the baseline, unless `unit` says otherwise.
    target : float or None
        The most it may be; the least, if `at_least`.
    unit : str
        ``"x"`` for a ratio.
    note : str
        What a reader has to know beside the figure.
    subject_ns, baseline_ns : Spread or None
        What the ratio was made of: nanoseconds an operation.
    at_least : bool
        Whether more is better, and the target the least that will do.
    """

    subject: str
    baseline: str
    figure: Spread
    target: float | None
    unit: str = "x"
    note: str = ""
    subject_ns: Spread | None = None
    baseline_ns: Spread | None = None
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the median lies on the target's good side; None if there is no target."""
        if self.target is None:
            return None
        median = self.figure.median
        return median >= self.target if self.at_least else median <= self.target


def ratios(
    baseline: Task, subjects: Sequence[tuple[Task, float | None]], rounds: int
) -> list[Finding]:
    """Time the baseline and the subjects in turn; return the ratio of each, with its target.

    A ratio is taken within a round, where both met the same disturbances, and then the median of
    all rounds. Each round begins with another task. The first, which warms up, does not count.

    What counts is CPU time of this thread, in the kernel and out of it: nothing measured here ever
    waits, and what else the machine does in between is not part of it.
    """
    defects = remap.defects()
    try:
        measured = interleave(
            [baseline, *(task for task, _ in subjects)], rounds + 1, clock=time.thread_time_ns
        )
    finally:
        # A task that raised has not put them back.
        remap.set_defects(defects)
    samples = {name: times[1:] for name, times in measured.items()}
    base = samples[baseline.name]
    return [
        Finding(
            task.name,
            baseline.name,
            spread([one / other for one, other in zip(samples[task.name], base, strict=True)]),
            target,
            subject_ns=spread(samples[task.name]),
            baseline_ns=spread(base),
        )
        for task, target in subjects
    ]


def on_both_kernels(name: str, run: Callable[[], object], operations: int) -> tuple[Task, Task]:
    """Time a call of the library as on a kernel without the stale-EAGAIN defect, and with it.

    With it the library looks at the source pages beforehand, so that its answer is true.
    """
    here = remap.defects()
    defect = remap.DEFECT_STALE_EAGAIN

    def task(defects: int, kernel: str) -> Task:
        which = " (this one)" if defects == here else ""
        return Task(
            f"{name}; {kernel}{which}",
            run,
            operations,
            prepare=lambda: remap.set_defects(defects),
            restore=lambda: remap.set_defects(here),
        )

    return (
        task(here & ~defect, "kernel without the defect"),
        task(here | defect, "kernel with the defect"),
    )


@contextmanager
def pinned() -> Iterator[int]:
    """Keep the calling thread, and the processes it starts, on one CPU; return its number."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def free() -> Iterator[None]:
    """Let the calling thread, and those it starts, run on every CPU that this process was given."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _ALLOWED)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def fresh(module: str, function: str, *arguments: object) -> Any:
    """Call a function of a module in an interpreter of its own; everything passes as JSON."""
    code = (
        "import importlib, json, sys; name, function, arguments = json.loads(sys.argv[1]); "
        "print(json.dumps(getattr(importlib.import_module(name), function)(*arguments)))"
    )
    order = json.dumps([module, function, arguments])
    done = subprocess.run(
        [sys.executable, "-c", code, order], cwd=_ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)

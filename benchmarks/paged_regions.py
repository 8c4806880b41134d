"""A thousand regions over files: the time to open each, and how many threads and descriptors."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks._measure import Effort, Finding, Spread, free, spread
from benchmarks._report import run_alone
from pagemove import PagedMemory, stores

_REGIONS = 1000
_NBYTES = 1 << 16
_TARGET_MS = 0.2
_TARGET_THREADS = 8


def _threads() -> list[Path]:
    return list(Path("/proc/self/task").iterdir())


def _descriptors() -> int:
    """Of the program's table, and of each that threads of the pager have."""
    pagers = (
        task for task in _threads() if (task / "comm").read_text().startswith("pagemove-faults")
    )
    tables = [Path("/proc/self"), *pagers]
    return sum(len(os.listdir(table / "fd")) for table in tables)


def _open(folder: Path, count: int) -> tuple[list[float], list[float], int, int]:
    """Return ms and CPU ms of each, and how many threads and descriptors they add."""
    took, cpu = [], []
    threads, descriptors = len(_threads()), _descriptors()
    with ExitStack() as stack:
        for number in range(count):
            store = stores.FileStore(folder / str(number))
            began, used = time.perf_counter_ns(), time.process_time_ns()
            region = stack.enter_context(PagedMemory(store))
            took.append((time.perf_counter_ns() - began) / 1e6)
            cpu.append((time.process_time_ns() - used) / 1e6)
            store.close()
            assert memoryview(region)[-1] == number % 256
        return took, cpu, len(_threads()) - threads, _descriptors() - descriptors


def _median(values: list[float]) -> float:
    return spread(values).median


def _always(count: int) -> Spread:
    return spread([float(count)])


def measure(effort: Effort) -> list[Finding]:
    count = min(_REGIONS, effort.pages)
    with tempfile.TemporaryDirectory() as name, free():
        folder = Path(name)
        for number in range(count):
            folder.joinpath(str(number)).write_bytes(bytes([number % 256]) * _NBYTES)
        rounds = [_open(folder, count) for _ in range(max(3, effort.rounds // 10))]
    each = spread([_median(took) for took, _, _, _ in rounds])
    cpu = spread([_median(used) for _, used, _, _ in rounds])
    threads = max(found[2] for found in rounds)
    descriptors = max(found[3] for found in rounds)
    what = f"{count} regions over files"
    return [
        Finding(f"{what}, open each", "the clock", each, _TARGET_MS, unit="ms"),
        Finding(f"{what}, open each", "CPU time", cpu, None, unit="ms"),
        Finding(what, "none", _always(threads), _TARGET_THREADS, unit="threads"),
        Finding(what, "none", _always(descriptors), count + 32, unit="descriptors"),
    ]


if __name__ == "__main__":
    run_alone(measure)

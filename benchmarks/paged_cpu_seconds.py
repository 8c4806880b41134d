"""CPU seconds of summing a file at a limit of a quarter, against `numpy.memmap`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks._baselines import sum_words
from benchmarks._measure import Effort, Finding, spread
from benchmarks._paging import (
    QUARTER,
    CachedFile,
    Place,
    Way,
    cached_file,
    cost,
    in_turn,
    paged,
    places,
)
from benchmarks._report import run_alone

_BLOCK = 2 << 20
_WHY = "; pread copies the file's bytes, where a mapping shows the page cache itself"


class _Clocks:
    """Takes CPU time of all threads, and the time that passes beside it."""

    def __init__(self, file: CachedFile) -> None:
        self._file = file
        self.elapsed: dict[str, list[float]] = {}

    def way(self, name: str, job: Callable[[], int]) -> Way:
        def measure() -> float:
            elapsed, used = time.perf_counter_ns(), time.process_time_ns()
            result = job()
            used = time.process_time_ns() - used
            elapsed = time.perf_counter_ns() - elapsed
            assert result == self._file.total, "paged memory has other content than the file"
            self.elapsed.setdefault(name, []).append(elapsed / 1e9)
            return used

        return Way(name, measure)


def _sum(array: np.ndarray) -> int:
    return sum_words(array.ctypes.data, array.nbytes)


def _at(place: Place, file: CachedFile, passes: int) -> list[Finding]:
    def mapped() -> np.memmap:
        # By its number, which no name leads to.
        with open(file.fd, "rb", closefd=False) as opened:
            return np.memmap(opened, np.uint8, "r")

    clocks = _Clocks(file)
    known = mapped()
    anew, again = "numpy.memmap, mapped anew", "numpy.memmap, used before"
    with paged(file, _BLOCK, limit=file.nbytes // QUARTER) as memory:
        address = memory.address
        subject = f"paged memory, 2 MiB blocks; {place.name}"
        ways = [
            clocks.way(subject, lambda: sum_words(address, file.nbytes)),
            clocks.way(anew, lambda: _sum(mapped())),
            clocks.way(again, lambda: _sum(known)),
        ]
        samples = in_turn(ways, passes)
    findings = []
    for baseline in (anew, again):
        seconds = [spread(samples[name]).median / 1e9 for name in (subject, baseline)]
        elapsed = [spread(clocks.elapsed[name][1:]).median for name in (subject, baseline)]
        note = (
            f"{seconds[0]:.3f} against {seconds[1]:.3f} CPU seconds, "
            f"in {elapsed[0]:.3f} against {elapsed[1]:.3f} seconds"
        )
        findings.append(cost(samples, subject, baseline, None, note if findings else note + _WHY))
    return findings


def measure(effort: Effort) -> list[Finding]:
    findings = []
    with cached_file(effort.long_file) as file:
        for place in places():
            with place.here():
                findings += _at(place, file, effort.passes)
    return findings


if __name__ == "__main__":
    run_alone(measure)

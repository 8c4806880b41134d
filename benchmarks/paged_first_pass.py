"""Sum a file through paged memory once, no limit, against pread into fresh huge pages."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks._baselines import fresh_memory, sum_by_pread, sum_words, touch_each
from benchmarks._measure import Effort, Finding
from benchmarks._paging import (
    CachedFile,
    Place,
    Way,
    cached_file,
    in_turn,
    paged,
    places,
    speed,
    timed,
)
from benchmarks._report import run_alone
from pagemove import PAGE_SIZE

_BLOCK = 2 << 20
_TARGET = 0.9


def _have_memory(nbytes: int) -> None:
    """See to it that a virtual machine has so much memory free, and more.

    Its host takes back what has been free for a while. Who is next to touch it waits for the host,
    sixteen times as long as for the kernel, and that would be all that is measured.
    """
    # Somewhat more, for whatever else is needed on the way.
    nbytes += nbytes // 8
    with fresh_memory(nbytes) as address:
        touch_each(address, np.arange(0, nbytes, PAGE_SIZE, np.uint64), write=1)


def _faster_half(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    """Leave out the passes that had to wait for the host all the same: those only get slower."""
    return {name: sorted(times)[: (len(times) + 1) // 2] for name, times in samples.items()}


def _by_paging(file: CachedFile, place: Place) -> float:
    _have_memory(file.nbytes)
    with paged(file, _BLOCK) as memory:
        address = memory.address
        return timed(lambda: sum_words(address, file.nbytes), file.total, place, file.nbytes)


def _by_pread(file: CachedFile, place: Place) -> float:
    _have_memory(file.nbytes)
    with fresh_memory(file.nbytes) as address:
        return timed(
            lambda: sum_by_pread(file.fd, file.nbytes, _BLOCK, address, _BLOCK),
            file.total,
            place,
            file.nbytes,
        )


def measure(effort: Effort) -> list[Finding]:
    findings = []
    with cached_file(effort.long_file) as file:
        for place in places():
            baseline = "speed of pread into fresh huge pages and summing them"
            subject = f"first pass, 2 MiB blocks; {place.name}"
            with place.here():
                ways = [
                    Way(baseline, partial(_by_pread, file, place)),
                    Way(subject, partial(_by_paging, file, place)),
                ]
                samples = _faster_half(in_turn(ways, effort.passes))
            findings.append(speed(samples, subject, baseline, _TARGET))
    return findings


if __name__ == "__main__":
    run_alone(measure)

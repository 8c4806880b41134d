"""One run of 4096 pages by `move_many`, against one ioctl from C for the whole run."""

from __future__ import annotations

import numpy as np

from benchmarks._areas import Areas
from benchmarks._measure import Effort, Finding, Task, on_both_kernels, ratios
from benchmarks._naive import Naive
from benchmarks._report import run_alone
from pagemove import move_many

_TARGET = 1.15


def measure(effort: Effort) -> list[Finding]:
    with Areas(effort.run) as areas:
        naive, here, there = Naive(), areas.home, areas.away
        pages = np.arange(effort.run)
        destinations = np.array([there.address, here.address], np.uint64)
        sources = destinations[::-1].copy()

        def by_move_many() -> None:
            move_many(there, here, pages, pages)
            move_many(here, there, pages, pages)

        baseline = Task("one ioctl from C", naive.each(destinations, sources, here.nbytes), 2)
        without, with_look = on_both_kernels(f"a run of {effort.run}", by_move_many, 2)
        return ratios(baseline, [(without, _TARGET), (with_look, _TARGET)], effort.rounds)


if __name__ == "__main__":
    run_alone(measure)

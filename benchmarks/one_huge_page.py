"""One huge page by `remap_anon_pages` from Python, against the same from a naive C loop."""

from __future__ import annotations

import numpy as np

from benchmarks._areas import Areas
from benchmarks._measure import Effort, Finding, Task, Unmeasurable, on_both_kernels, ratios
from benchmarks._naive import Naive
from benchmarks._report import run_alone
from pagemove import HUGE_PAGE_SIZE, remap_anon_pages

_TARGET = 1.3
# There and back so often within one measurement: huge pages are few.
_TURNS = 64


def measure(effort: Effort) -> list[Finding]:
    if not HUGE_PAGE_SIZE:
        raise Unmeasurable("this kernel has no transparent huge pages")
    with Areas(effort.huge_pages, huge=True) as areas:
        naive = Naive()
        destinations, sources = (np.tile(each, _TURNS) for each in areas.addresses())
        pairs = list(zip(destinations.tolist(), sources.tolist(), strict=True))

        def from_python() -> None:
            for dst, src in pairs:
                remap_anon_pages(dst, src, HUGE_PAGE_SIZE)

        baseline = Task("C loop", naive.each(destinations, sources, HUGE_PAGE_SIZE), len(pairs))
        without, with_look = on_both_kernels("one huge page", from_python, len(pairs))
        return ratios(baseline, [(without, _TARGET), (with_look, _TARGET)], effort.rounds)


if __name__ == "__main__":
    run_alone(measure)

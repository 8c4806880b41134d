"""One page by `remap_anon_pages` from Python with integer addresses, against a naive C loop."""

from __future__ import annotations

from benchmarks._areas import Areas
from benchmarks._measure import Effort, Finding, Task, on_both_kernels, ratios
from benchmarks._naive import Naive
from benchmarks._report import run_alone
from pagemove import remap_anon_pages


def measure(effort: Effort) -> list[Finding]:
    with Areas(effort.pages) as areas:
        naive, length = Naive(), areas.page_size
        destinations, sources = areas.addresses()
        pairs = list(zip(destinations.tolist(), sources.tolist(), strict=True))

        def from_python() -> None:
            for dst, src in pairs:
                remap_anon_pages(dst, src, length)

        baseline = Task("C loop", naive.each(destinations, sources, length), len(pairs))
        without, with_look = on_both_kernels("integer addresses", from_python, len(pairs))
        return ratios(baseline, [(without, 1.25), (with_look, 1.4)], effort.rounds)


if __name__ == "__main__":
    run_alone(measure)

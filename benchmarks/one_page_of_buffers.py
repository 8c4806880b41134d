"""One page by `remap_anon_pages` from Python with `Memory` or arrays, against a naive C loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from benchmarks._areas import Areas
from benchmarks._measure import Effort, Finding, Task, on_both_kernels, ratios
from benchmarks._naive import Naive
from benchmarks._report import run_alone
from pagemove import PAGE_SIZE, Memory, remap_anon_pages

_TARGET = 1.5
_MOST_OBJECTS = 512


def _compare(
    name: str, home: Sequence[object], away: Sequence[object], areas: Sequence[int], rounds: int
) -> list[Finding]:
    pairs = [*zip(away, home, strict=True), *zip(home, away, strict=True)]
    at_home, at_away = np.array(areas, np.uint64).reshape(2, -1)
    destinations = np.concatenate([at_away, at_home])
    sources = np.concatenate([at_home, at_away])
    naive = Naive()

    def from_python() -> None:
        for dst, src in pairs:
            remap_anon_pages(dst, src, PAGE_SIZE)

    baseline = Task("C loop", naive.each(destinations, sources, PAGE_SIZE), len(pairs))
    without, with_look = on_both_kernels(name, from_python, len(pairs))
    return ratios(baseline, [(without, _TARGET), (with_look, _TARGET)], rounds)


def _of_memory(effort: Effort) -> list[Finding]:
    with ExitStack() as stack:
        count = min(effort.pages, _MOST_OBJECTS)
        home, away = (
            [stack.enter_context(Memory(PAGE_SIZE)) for _ in range(count)] for _ in range(2)
        )
        for memory in home:
            memory.asarray(np.uint8)[:] = 1
        addresses = [memory.address for memory in (*home, *away)]
        findings = _compare("two Memory of one page", home, away, addresses, effort.rounds)
        assert all(memory.asarray(np.uint8).all() for memory in home), "a page did not come home"
        return findings


def _of_arrays(effort: Effort) -> list[Finding]:
    with Areas(min(effort.pages, _MOST_OBJECTS)) as areas:
        shape = (len(areas.filled), PAGE_SIZE)
        home, away = (list(area.asarray(np.uint8, shape)) for area in (areas.home, areas.away))
        addresses = [row.ctypes.data for row in (*home, *away)]
        findings = _compare("rows of two arrays", home, away, addresses, effort.rounds)
        del home, away
        return findings


def measure(effort: Effort) -> list[Finding]:
    return [*_of_memory(effort), *_of_arrays(effort)]


if __name__ == "__main__":
    run_alone(measure)

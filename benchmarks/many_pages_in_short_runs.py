"""Runs of 16 pages by `move_many`, a page, against one page at a time from Python."""

from __future__ import annotations

import numpy as np

from benchmarks._areas import Areas
from benchmarks._measure import Effort, Finding, on_both_kernels, ratios
from benchmarks._naive import Pages
from benchmarks._report import run_alone
from pagemove import move_many, remap_anon_pages

_TARGET = 0.2
_RUN = 16


def _shuffled_runs(count: int, random: np.random.Generator) -> Pages:
    starts = random.permutation(count).astype(np.int64)[:, None] * _RUN
    return (starts + np.arange(_RUN)).ravel()


def measure(effort: Effort) -> list[Finding]:
    random = np.random.default_rng(20140701)
    count = effort.pages // _RUN
    home, away = _shuffled_runs(count, random), _shuffled_runs(count, random)
    with Areas(count * _RUN) as areas:
        here, there, length = areas.home, areas.away, areas.page_size
        from_home = (here.address + home * length).tolist()
        to_away = (there.address + away * length).tolist()
        pairs = [*zip(to_away, from_home, strict=True), *zip(from_home, to_away, strict=True)]

        def one_by_one() -> None:
            for dst, src in pairs:
                remap_anon_pages(dst, src, length)

        def by_move_many() -> None:
            move_many(there, here, away, home)
            move_many(here, there, home, away)

        singly = on_both_kernels("remap_anon_pages in a loop", one_by_one, len(pairs))
        in_runs = on_both_kernels("runs of 16", by_move_many, len(pairs))
        findings = []
        for baseline, subject in zip(singly, in_runs, strict=True):
            findings += ratios(baseline, [(subject, _TARGET)], effort.rounds)
        return findings


if __name__ == "__main__":
    run_alone(measure)

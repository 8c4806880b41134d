"""Random single pages by `move_many`, a page, against a naive C loop over the same indices."""

from __future__ import annotations

import numpy as np

from benchmarks._areas import Areas
from benchmarks._measure import Effort, Finding, Task, on_both_kernels, ratios
from benchmarks._naive import Naive
from benchmarks._report import run_alone
from pagemove import move_many

_TARGET = 1.1
# Room for one page in so many: how far apart the pages are matters to a look at several at once.
_THIN = 64


def _compare(name: str, length: int, count: int, rounds: int) -> list[Finding]:
    random = np.random.default_rng(20140701)
    home, away = (random.choice(length, count, replace=False).astype(np.int64) for _ in range(2))
    with Areas(length, home) as areas:
        naive, page_size = Naive(), areas.page_size
        here, there = areas.home, areas.away

        go = naive.by_number(there.address, here.address, away, home, page_size)
        come_back = naive.by_number(here.address, there.address, home, away, page_size)

        def in_c() -> None:
            go()
            come_back()

        def by_move_many() -> None:
            move_many(there, here, away, home)
            move_many(here, there, home, away)

        without, with_look = on_both_kernels(name, by_move_many, 2 * count)
        return ratios(
            Task("C loop", in_c, 2 * count), [(without, _TARGET), (with_look, _TARGET)], rounds
        )


def measure(effort: Effort) -> list[Finding]:
    count = effort.pages
    return [
        *_compare("all pages of a buffer", count, count, effort.rounds),
        *_compare(f"one page in {_THIN} of a buffer", _THIN * count, count, effort.rounds),
    ]


if __name__ == "__main__":
    run_alone(measure)

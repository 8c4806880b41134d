"""Compact a fragmented heap of NumPy rows: close the gaps, in order, and free the tail.

Run: python examples/compact_heap.py [ROWS]

Two thirds of the rows are garbage, scattered at random. The others go to the front of the same
`Memory`, backwards and in order, each into a place that is garbage or was left before. What lies
behind them goes back to the kernel.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from pagemove import PAGE_SIZE, Memory, PageState, move_many

Rows = npt.NDArray[np.int64]

ROW_PAGES = 16
ROW_BYTES = ROW_PAGES * PAGE_SIZE
LIVE_SHARE = 1 / 3
TURNS = 7


class Heap:
    """Rows of equal size, one behind the other; some are garbage.

    Attributes
    ----------
    live : array of int
        Where the rows are that somebody still needs, in ascending order. Row n holds the number n.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        random = np.random.default_rng(2014)
        self.live = np.flatnonzero(random.random(count) < LIVE_SHARE)
        self.memory = Memory(count * ROW_BYTES)

    def rows(self) -> Rows:
        """View the rows as an array."""
        return self.memory.asarray(np.int64, (self.count, ROW_BYTES // 8))

    def fragment(self) -> None:
        """Write every row, and have most of them become garbage."""
        self.rows()[:] = np.arange(self.count)[:, None]

    def resident(self) -> int:
        """Bytes of memory that the heap takes."""
        return int(np.count_nonzero(self.memory.page_states() & PageState.PRESENT)) * PAGE_SIZE

    def is_compact(self) -> bool:
        """Return whether the live rows, and only these, are at the front, in order, unchanged."""
        front = self.rows()[: len(self.live)]
        whole = bool((front == self.live[:, None]).all())
        return whole and self.resident() == len(self.live) * ROW_BYTES

    def free_tail(self) -> None:
        """Discard what is behind the live rows."""
        self.memory.discard(len(self.live) * ROW_BYTES)


def compact_by_moving(heap: Heap) -> None:
    """Empty the places of garbage at the front, and move the live rows there."""
    places = np.arange(len(heap.live))
    garbage = np.setdiff1d(places, heap.live, assume_unique=True)
    for start, stop in runs(garbage):
        heap.memory.discard(start * ROW_BYTES, (stop - start) * ROW_BYTES)
    out_of_place = heap.live != places
    sources, destinations = heap.live[out_of_place], places[out_of_place]
    move_many(heap.memory, heap.memory, destinations, sources, page_size=ROW_BYTES)
    heap.free_tail()


def compact_by_copying(heap: Heap) -> None:
    """Copy the live rows over the garbage; in order, so it needs no memory beside."""
    rows = heap.rows()
    for place, row in enumerate(heap.live.tolist()):
        if place != row:
            rows[place] = rows[row]
    del rows
    heap.free_tail()


def runs(numbers: npt.NDArray[np.intp]) -> list[tuple[int, int]]:
    """Join ascending numbers that follow each other: first and, behind it, the end."""
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    firsts = np.concatenate([numbers[:1], numbers[breaks + 1]])
    lasts = np.concatenate([numbers[breaks], numbers[-1:]])
    return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))


def try_out(count: int) -> dict[str, Any]:
    """Fragment and compact by turns; return how long each takes, and how much memory is left."""
    methods: dict[str, Callable[[Heap], None]] = {
        "moving": compact_by_moving,
        "copying": compact_by_copying,
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    right = True
    heap = Heap(count)
    with heap.memory:
        for turn in range(TURNS + 1):
            for name, compact in methods.items():
                heap.fragment()
                before = heap.resident()
                started = time.perf_counter()
                compact(heap)
                taken = time.perf_counter() - started
                right = right and heap.is_compact()
                # The first turn brings code and page tables into the caches.
                if turn:
                    times[name].append(taken * 1e3)
        return {
            "right": right,
            "live": len(heap.live),
            "resident": (before, heap.resident()),
            "times": {name: statistics.median(each) for name, each in times.items()},
        }


def main(arguments: Sequence[str]) -> int:
    """Do it with as many rows as are asked for, and print what happened."""
    count = int(arguments[0]) if arguments else 2000
    outcome = try_out(count)
    live, times = outcome["live"], outcome["times"]
    before, after = outcome["resident"]
    console = Console(highlight=False)
    console.print(
        f"\nA heap of {count:,} rows of {ROW_BYTES // 1024} KiB, {live:,} of them still needed.\n"
    )
    table = Table(caption=f"Medians of {TURNS} turns.")
    for name in ("", "moving pages", "copying with NumPy"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("time to compact", *(f"{times[name]:.2f} ms" for name in ("moving", "copying")))
    table.add_row("bytes copied", "0", f"{live * ROW_BYTES:,}")
    for name, resident in (("before", before), ("after", after)):
        table.add_row(f"resident {name}", *[f"{resident / 2**20:.1f} MiB"] * 2)
    console.print(table)
    right = outcome["right"]
    console.print(
        "Every live row is at the front, in order and unchanged, and nothing else is resident."
        if right
        else "[bold red]Some row is not where it should be, or not what it was.[/]"
    )
    console.print(f"Moving takes {times['moving'] / times['copying']:.2f} x as long as copying.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

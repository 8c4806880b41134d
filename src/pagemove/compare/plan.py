"""How thorough a run of `pagemove compare` is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE
from pagemove.compare.methods import Size

# Operations in one timed run: enough to outweigh reading the clock, few enough to stay in a cache.
_MOST_SLOTS = 32
_MOST_PAGES = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often.

    Attributes
    ----------
    quick : bool
        Whether this is the short version.
    seconds : float
        What all of it may take; where the machine is slow or busy, there are fewer measurements.
    pages : tuple of int
        Numbers of pages whose cost is measured.
    range_pages : int
        Pages of the whole range, moved by one operation.
    sittings, rounds : int
        How often memory is allocated anew for measuring costs, and measurements of each cost with
        it. Which frames a method happens to get matters more than any other disturbance.
    most_moves : int
        Where counting mappings ends, if the kernel does not end it before.
    fault_rounds : int
        Measurements of another thread's faults.
    fault_window : float
        Seconds that each of them lasts.
    fault_pages : tuple of int
        Pages that one operation moves meanwhile.
    """

    quick: bool
    seconds: float
    pages: tuple[int, ...]
    range_pages: int
    sittings: int
    rounds: int
    most_moves: int
    fault_rounds: int
    fault_window: float
    fault_pages: tuple[int, ...]

    def sizes(self) -> list[Size]:
        """List what one operation brings over, small to large, a huge page last."""
        sizes = [
            Size(str(pages), pages, max(1, min(_MOST_SLOTS, _MOST_PAGES // pages)))
            for pages in self.pages
        ]
        sizes.append(Size("whole range", self.range_pages, 1))
        if HUGE_PAGE_SIZE:
            sizes.append(Size("one huge page", HUGE_PAGE_SIZE // PAGE_SIZE, 2, huge=True))
        return sizes


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement is given.

    Attributes
    ----------
    plan : Plan
        How thorough to be.
    sibling_cpu : int or None
        Where another thread of the process may run; None if there is only one CPU.
    deadline : float
        Reading of `time.monotonic` from which on only what is indispensable is measured.
    tick : callable
        To be called with what is being done and the share of the measurement that is done.
    """

    plan: Plan
    sibling_cpu: int | None
    deadline: float
    tick: Callable[[str, float], None]


QUICK = Plan(
    quick=True,
    seconds=13.0,
    pages=(1, 2, 4, 16, 64, 512),
    range_pages=2048,
    sittings=3,
    rounds=3,
    most_moves=40_000,
    fault_rounds=7,
    fault_window=0.008,
    fault_pages=(1, 512),
)

FULL = Plan(
    quick=False,
    seconds=240.0,
    pages=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    range_pages=8192,
    sittings=5,
    rounds=7,
    most_moves=100_000,
    fault_rounds=15,
    fault_window=0.016,
    fault_pages=(1, 16, 512),
)

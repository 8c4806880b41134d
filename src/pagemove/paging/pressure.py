"""The budget of ``"auto"`` yields while others need memory, and comes back when they do not.

What was available when the first region was opened says nothing of an hour later. The kernel tells
two things: how much is available now, and for what part of the time tasks waited for memory
(pressure stall information). The second alone would be wrong: a program that reads a file larger
than the page cache waits too, and a smaller budget would not help it.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

from pagemove.cgroups import groups, read

#: Seconds from one look to the next, and of quiet before memory is taken again.
INTERVAL, QUIET = 1.0, 10.0
#: The part of the time that some task waited for memory, from which on there is pressure.
STALLED = 0.1
#: Of the limit asked for: what is left to others at least, and what changes at one look.
RESERVE, STEP = 8, 8
#: Below this it does not fall.
LEAST = 16 << 20
_UNIFIED = 2  # the version of control groups that says how long was waited


class Yielding(Protocol):
    """What is asked of a budget."""

    def counters(self) -> dict[str, int]:
        """Return ``total``, ``leased``, ``floors`` and ``members``: bytes, and regions."""

    def resize(self, limit: int, *, timeout: float) -> None:
        """Change the limit."""


class Available(Protocol):
    """A function that says how much memory is available."""

    def __call__(self, root: str | os.PathLike[str]) -> int | None:
        """Return bytes; None where that is unknown."""


class Watcher:
    """Looks at one budget and at the machine, and resizes the one by the other.

    Parameters
    ----------
    budget : Budget
        It is held weakly.
    available : callable
        How many bytes are available, of a root.
    root : path-like
        Of the file system: another in tests.
    """

    def __init__(
        self, budget: Yielding, available: Available, root: str | os.PathLike[str] = "/"
    ) -> None:
        self._budget = weakref.ref(budget)
        # What was asked for, which it never exceeds, and what it was made into.
        self._limit = self._made = budget.counters()["total"]
        self._available = available
        self._root = root
        self._stalls = dict(self._stalled())
        self._looked = time.monotonic()
        self._pressed = self._looked - QUIET

    def _stalled(self) -> Iterator[tuple[str, int]]:
        """List the microseconds that some task waited for memory, of the machine and each group."""
        files = [os.path.join(self._root, "proc/pressure/memory")]
        files += [
            os.path.join(group.path, "memory.pressure")
            for group in groups("memory", self._root)
            if group.version == _UNIFIED
        ]
        for file in files:
            for line in read(file).splitlines():
                kind, _, total = line.partition("total=")
                if kind.startswith("some ") and total.isdecimal():
                    yield file, int(total)

    def _part_stalled(self, seconds: float) -> float:
        before, self._stalls = self._stalls, dict(self._stalled())
        waited = [now - before.get(file, now) for file, now in self._stalls.items()]
        return max(waited, default=0) / 1e6 / seconds if seconds > 0 else 0.0

    def look(self, now: float | None = None) -> bool:
        """Look once; False if no region shares the budget.

        Parameters
        ----------
        now : float, optional
            The monotonic clock, in seconds: another in tests.
        """
        budget = self._budget()
        if budget is None:
            return False
        counters = budget.counters()
        if not counters["members"]:
            return False
        now = time.monotonic() if now is None else now
        stalled = self._part_stalled(now - self._looked)
        self._looked = now
        free = self._available(self._root)
        if free is not None:
            self._change(budget, counters, free, stalled, now)
        return True

    def _change(
        self, budget: Yielding, counters: dict[str, int], free: int, stalled: float, now: float
    ) -> None:
        total = counters["total"]
        if total != self._made:  # by somebody else: that is what is asked for now
            self._limit = self._made = total
        reserve, step = self._limit // RESERVE, self._limit // STEP
        # What regions may take without asking is as good as taken.
        left = free - max(total - counters["leased"], 0)
        if left < reserve or (stalled > STALLED and left < self._limit // 2):
            self._pressed = now
            wanted = total - max(step, reserve - left)
        elif total < self._limit and now - self._pressed >= QUIET and left > 2 * reserve + step:
            wanted = total + step
        else:
            return
        least = max(counters["floors"], min(LEAST, self._limit))
        wanted = min(max(wanted, least), self._limit)
        if wanted == total:
            return
        try:
            budget.resize(wanted, timeout=INTERVAL)
        except ValueError:
            return  # regions opened meanwhile cannot do with so little
        except TimeoutError:
            pass  # it is in force, and what is too much is asked for with each need of memory
        self._made = wanted

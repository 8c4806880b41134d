"""The limit of an arena that follows what is available: less while others need memory."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from pagemove.paging.available import available
from pagemove.paging.pressure import INTERVAL, Watcher

if TYPE_CHECKING:
    from pagemove._native.arena import Arena
    from pagemove.paging.budget import Budget


class ArenaLimit:
    """What `pagemove.paging.pressure` asks of a budget, of an arena and of its region's.

    Parameters
    ----------
    arena : Arena
        Held weakly. As long as it fits the limit its memory is not leased, but is taken.
    budget : Budget
        Of its region alone.
    """

    def __init__(self, arena: Arena, budget: Budget) -> None:
        self._arena = weakref.ref(arena)
        self._budget = budget

    def counters(self) -> dict[str, int]:
        """Return those of the budget, and what the arena has taken as leased."""
        arena, counters = self._arena(), self._budget.counters()
        if arena is None:
            return {**counters, "members": 0}
        taken = min(arena.counters()["used"], counters["total"])
        return {**counters, "leased": max(counters["leased"], taken), "members": 1}

    def resize(self, limit: int, *, timeout: float) -> None:
        """Change the limit; what is beyond it is evicted.

        Raises
        ------
        ValueError
            The region cannot do with so little. The limit is as before.
        TimeoutError
            Not all of it is evicted yet. The limit is in force.
        """
        try:
            self._budget.resize(limit, timeout=timeout)
        finally:
            arena = self._arena()
            if arena is not None and arena.set_limit(self._budget.limit):
                raise TimeoutError("what is beyond the limit cannot be evicted now")


def follow(arena: Arena, budget: Budget) -> ArenaLimit:
    """Have a thread look at the machine once a second, until the arena or what is returned is gone.

    Parameters
    ----------
    arena : Arena
        Whose region has that budget.
    budget : Budget
        It never exceeds what it is now.
    """
    limit = ArenaLimit(arena, budget)
    threading.Thread(
        target=_watch, args=(Watcher(limit, available),), name="pagemove-pressure", daemon=True
    ).start()
    return limit


def _watch(watcher: Watcher) -> None:
    while watcher.look():
        time.sleep(INTERVAL)

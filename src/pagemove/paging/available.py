"""How much memory a region without a limit of its own may take: a share of what is available.

A control group that runs out of memory has its processes killed by the kernel, so it is looked at
first: a container of 200 MiB on a machine of 64 GiB has 200 MiB.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

from pagemove.cgroups import groups, read
from pagemove.limits import MEMORY_FILES
from pagemove.paging.budget import Budget
from pagemove.paging.pressure import INTERVAL, Watcher

#: Half. The rest is for what belongs to the region and is not counted in its limit (the helper's
#: buffers, which are a quarter of the limit at most, compressed blocks, page tables), for the page
#: cache of the store, and for what the program itself computes with.
SHARE = 2
#: However little is available: less would only be slow.
LEAST = 16 << 20
#: Seconds without a region until the thread that adjusts the automatic budget ends.
IDLE = 60.0

# What the kernel takes back before it kills, by version. Version 1 has numbers of the group alone
# beside those of what is in it.
_RECLAIMABLE = {
    1: ("total_inactive_file", "total_active_file"),
    2: ("inactive_file", "active_file", "slab_reclaimable"),
}


class Region(Protocol):
    """What is asked of regions that took a share."""

    def counters(self) -> dict[str, int]:
        """Return ``resident`` among others: bytes."""


_lock = threading.Lock()


def _in_child() -> None:
    # A thread that is not here may have had it.
    global _lock, _watched
    _lock = threading.Lock()
    _watched = False


os.register_at_fork(after_in_child=_in_child)

_automatic: Budget | None = None
_watcher: Watcher | None = None  # of that budget
_asked = 0.0  # when a region last asked for it
_watched = False  # whether a thread looks after it
#: What each may take in the end. It is not available any more, though it may not be used yet.
_promised: weakref.WeakKeyDictionary[Region, int] = weakref.WeakKeyDictionary()


def available(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process can still allocate before others must free some.

    Parameters
    ----------
    root : Path
        Of the file system: another in tests.

    Returns
    -------
    int or None
        The least of what is left in the control group of the process and in each of those that it
        is in, and of MemAvailable; never negative. None where nothing of that can be read.
    """
    found = [_in_machine(root)]
    for group in groups("memory", root):
        limit_name, used_name = MEMORY_FILES[group.version]
        limits = [group.number(limit_name)]
        if group.version == 2:
            # Beyond that it is slowed down until nothing goes any more.
            limits.append(group.number("memory.high"))
        used = group.number(used_name)
        given = [limit for limit in limits if limit is not None]
        if not given or used is None:
            continue
        kept = group.numbers("memory.stat")
        used -= sum(kept.get(name, 0) for name in _RECLAIMABLE[group.version])
        found.append(max(min(given) - max(used, 0), 0))
    return min((each for each in found if each is not None), default=None)


def _in_machine(root: Path) -> int | None:
    for line in read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return None


def default_limit(nbytes: int, least: int) -> int:
    """Choose the limit of a region over so many bytes whose user has not; 0: it needs none.

    `least` is what it cannot do with less than.
    """
    if nbytes <= max(LEAST, least):
        return 0  # whatever is available; and that takes reading a dozen files
    memory = available()
    if memory is None:
        return 0
    share = max((memory - _outstanding()) // SHARE, LEAST, least)
    return share if nbytes > share else 0


def automatic(limit: int) -> Budget:
    """Return the budget of all regions of the process whose limit is ``"auto"``.

    It is made, or made anew, with such a limit where no region has it. A thread looks after it
    while regions share it: it shrinks while others need memory (`pagemove.paging.pressure`).
    """
    global _automatic, _watcher, _asked, _watched
    with _lock:
        if _automatic is None or _watcher is None:
            _automatic = Budget(limit)
            _watcher = Watcher(_automatic, available)
        elif not _automatic.counters()["members"]:
            _automatic.resize(limit)
        _asked = time.monotonic()
        if not _watched:
            threading.Thread(
                target=_watch,
                args=(_watcher,),
                name="pagemove-pressure",
                daemon=True,
            ).start()
            _watched = True
        return _automatic


def _watch(watcher: Watcher) -> None:
    global _watched
    watched = True
    try:
        while watched:
            time.sleep(INTERVAL)
            if watcher.look():
                continue
            # Together with the decision: a region opened after that starts another thread.
            with _lock:
                _watched = watched = time.monotonic() - _asked <= IDLE
    except BaseException:
        with _lock:
            _watched = False
        raise


def _unused() -> int:
    """Count what regions may still take of the automatic budget."""
    counters = {} if _automatic is None else _automatic.counters()
    return max(counters["total"] - counters["leased"], 0) if counters.get("members") else 0


def promise(region: Region, nbytes: int) -> None:
    """Keep for a region without a limit of its own what it may take in the end."""
    with _lock:
        _promised[region] = nbytes


def _outstanding() -> int:
    """Count what regions were promised and have not taken."""
    with _lock:
        promised = list(_promised.items())
    total = _unused()
    for region, nbytes in promised:
        try:
            total += max(nbytes - region.counters()["resident"], 0)
        except ValueError:  # closed, or the parent's
            continue
    return total

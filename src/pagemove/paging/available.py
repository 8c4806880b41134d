"""How much memory regions without a limit of their own may take: a share of what is available.

A control group that runs out of memory has its processes killed by the kernel, so it is looked at
first: a container of 200 MiB on a machine of 64 GiB has 200 MiB.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol

from pagemove import children
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
# Seconds for which what was found available is still believed.
_FRESH = 1.0

# What the kernel takes back before it kills, by version. Version 1 has numbers of the group alone
# beside those of what is in it.
_RECLAIMABLE = {
    1: ("total_inactive_file", "total_active_file"),
    2: ("inactive_file", "active_file", "slab_reclaimable"),
}


class Region(Protocol):
    """What is asked of regions that took a share."""

    @property
    def untouched(self) -> bool:
        """Whether this process has inherited it, and not opened it yet."""

    def counters(self) -> dict[str, int]:
        """Return ``resident`` among others: bytes."""


class Share:
    """What a region that is being opened is to have, until `settle` or `withdraw`.

    Attributes
    ----------
    budget : Budget, optional
        Which it shares with others; None: it has no limit.
    nbytes, least : int
        What it may take in the end, and what it cannot do with less than.
    """

    __slots__ = ("__weakref__", "budget", "least", "nbytes")

    def __init__(self, budget: Budget | None, nbytes: int, least: int) -> None:
        self.budget, self.nbytes, self.least = budget, nbytes, least


_lock = threading.Lock()


def _in_child() -> None:
    # A thread that is not here may have had the lock, and what the budget has is the parent's.
    global _lock, _watched, _automatic, _watcher, _granted, _opening
    _lock = threading.Lock()
    _watched = False
    _automatic = _watcher = None
    _granted = 0
    _opening = weakref.WeakSet()


children.first_do(_in_child)

_automatic: Budget | None = None
_watcher: Watcher | None = None  # of that budget
_asked = 0.0  # when a region last asked for it
_watched = False  # whether a thread looks after this one
_granted = 0  # bytes that regions may have without a look
_granted_at = 0.0
_opening: weakref.WeakSet[Share] = weakref.WeakSet()
#: What each may take in the end. It is not available any more, though it may not be used yet.
_promised: weakref.WeakKeyDictionary[Region, int] = weakref.WeakKeyDictionary()


def available(root: str | os.PathLike[str] = "/") -> int | None:
    """Return how many bytes this process can still allocate before others must free some.

    Parameters
    ----------
    root : path-like
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


def allowed(root: str | os.PathLike[str] = "/") -> int | None:
    """Return how many bytes this process may have at most; None where that cannot be read.

    The least of what its control groups allow, and of the machine's memory; `root` as `available`.
    """
    found = [group.number(MEMORY_FILES[group.version][0]) for group in groups("memory", root)]
    found.append(_in_machine(root, "MemTotal"))
    return min((each for each in found if each is not None), default=None)


def _in_machine(root: str | os.PathLike[str], wanted: str = "MemAvailable") -> int | None:
    for line in read(os.path.join(root, "proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        if name == wanted:
            return int(rest.split()[0]) << 10
    return None


def automatic(nbytes: int, least: int) -> Share:
    """Return what a region of `nbytes` whose user has not chosen a limit has; see `settle`.

    No budget where all such regions together fit the share of what is available; else the one of
    all of them. `least` is what it cannot do with less than: if there is no room for that, the
    budget grows.

    The budget is made, or made anew, where no region has it. A thread looks after it while regions
    share it: it shrinks while others need memory (`pagemove.paging.pressure`).
    """
    global _automatic, _watcher, _asked, _watched
    with _lock:
        limit = _limit_for(nbytes, least)
        share = Share(None, nbytes, least)
        _opening.add(share)
        if not limit:
            return share
        floors = sum(each.least for each in _opening if each.budget is not None)
        counters = {} if _automatic is None else _automatic.counters()
        if _automatic is None or _watcher is None:
            _automatic = Budget(limit)
            _watcher = Watcher(_automatic, available)
            _watched = False  # a thread may look after another one still
        elif not counters["members"] and not floors:
            _automatic.resize(limit)
        elif counters["floors"] + floors + least > counters["total"]:
            _automatic.resize(counters["floors"] + floors + least)
        share.budget = _automatic
        _asked = time.monotonic()
        if not _watched:
            threading.Thread(
                target=_watch,
                args=(_watcher,),
                name="pagemove-pressure",
                daemon=True,
            ).start()
            _watched = True
        return share


def _limit_for(nbytes: int, least: int) -> int:
    """Choose the limit of the automatic budget for one more region; 0: the region needs none."""
    global _granted, _granted_at
    now = time.monotonic()
    if nbytes <= _granted and now - _granted_at < _FRESH:
        _granted -= nbytes
        return 0
    memory = available()
    if memory is None:
        return 0
    promised, taken = _promises()
    # Others may take what they were promised, and what they have of it is not available already.
    room = (memory + taken) // SHARE - promised
    if nbytes <= room:
        # The next small ones need not look: that reads a dozen files.
        _granted, _granted_at = (room - nbytes) // 8, now
        return 0
    _granted = 0
    return max((memory + taken - promised) // SHARE, LEAST, least)


def _watch(watcher: Watcher) -> None:
    watched = True
    try:
        while watched:
            time.sleep(INTERVAL)
            if watcher.look():
                continue
            # Together with the decision: a region opened after that starts another thread.
            with _lock:
                watched = watcher is _watcher and time.monotonic() - _asked <= IDLE
                _note_watched(watcher, watched)
    except BaseException:
        with _lock:
            _note_watched(watcher, False)
        raise


def _note_watched(watcher: Watcher, watched: bool) -> None:
    global _watched
    if watcher is _watcher:
        _watched = watched


def settle(region: Region, share: Share) -> None:
    """Have a region that is open now have its share: kept for it, where it has no limit."""
    with _lock:
        _opening.discard(share)
        if share.budget is None:
            _promised[region] = share.nbytes


def withdraw(share: Share) -> None:
    """Have a share again that no region is to have: it was not opened."""
    with _lock:
        _opening.discard(share)


def _promises() -> tuple[int, int]:
    """Count what regions without a limit of their own were promised, and have of it: bytes."""
    promised = sum(each.nbytes for each in _opening if each.budget is None)
    taken = 0
    counters = {} if _automatic is None else _automatic.counters()
    if counters.get("members"):
        promised += counters["total"]
        taken = min(counters["leased"], counters["total"])
    for region, nbytes in list(_promised.items()):
        try:
            # In a child made by fork it is not opened for this.
            resident = 0 if region.untouched else region.counters()["resident"]
        except ValueError:  # closed, or the parent's
            continue
        promised += nbytes
        taken += min(resident, nbytes)
    return promised, taken

"""paging/pressure.py: the automatic budget shrinks under pressure, and grows when there is none."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import pagemove
from pagemove.paging import available, pressure
from pagemove.paging.pressure import LEAST, QUIET, RESERVE, STEP, Watcher
from pagemove.stores import FileStore
from support.paging import make_file
from support.trees import make_tree

MIB = 1 << 20
LIMIT = 1024 * MIB


class Recorded:
    """A budget that does what it is told, with a region in it that leases all of it."""

    def __init__(self, total: int = LIMIT) -> None:
        self.total, self.floors, self.members, self.unused = total, MIB, 1, 0
        self.raises: Exception | None = None

    def counters(self) -> dict[str, int]:
        leased = self.total - self.unused
        return {
            "total": self.total,
            "leased": leased,
            "floors": self.floors,
            "members": self.members,
        }

    def resize(self, limit: int, *, timeout: float) -> None:
        assert timeout <= pressure.INTERVAL
        if isinstance(self.raises, ValueError):
            raise self.raises
        self.total = limit
        if self.raises is not None:
            raise self.raises


class Machine:
    """What is available, and how long was waited, as a test says."""

    def __init__(self, root: Path) -> None:
        self.root, self.free, self.now = root, 8 * LIMIT, time.monotonic()
        self.waited(0)

    def available(self, root: Path) -> int | None:
        assert root == self.root
        return self.free

    def waited(self, microseconds: int, file: str = "proc/pressure/memory") -> None:
        text = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={microseconds}\nfull total=999\n"
        make_tree(self.root, {file: text})

    def later(self, watcher: Watcher, seconds: float = 1.0) -> bool:
        self.now += seconds
        return watcher.look(self.now)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def budget():
    return Recorded()


@pytest.fixture
def watcher(machine, budget):
    made = Watcher(budget, machine.available, machine.root)
    machine.now = time.monotonic()
    return made


def test_nothing_happens_while_there_is_memory(machine, budget, watcher):
    for _ in range(30):
        assert machine.later(watcher)
    assert budget.total == LIMIT


def test_it_leaves_a_reserve_to_others(machine, budget, watcher):
    machine.free = LIMIT // RESERVE - 1
    assert machine.later(watcher)
    assert budget.total == LIMIT - LIMIT // STEP
    machine.free = 0
    machine.later(watcher)
    assert budget.total == LIMIT - LIMIT // STEP - LIMIT // RESERVE
    for _ in range(20):
        machine.later(watcher)
    assert budget.total == LEAST


def test_what_regions_may_still_take_is_not_available(machine, budget, watcher):
    machine.free = LIMIT // 2
    machine.later(watcher)
    assert budget.total == LIMIT
    budget.unused = LIMIT // 2
    machine.later(watcher)
    assert budget.total < LIMIT


def test_time_spent_waiting_is_pressure_if_memory_is_short(machine, budget, watcher):
    machine.free = LIMIT // 2 - 1
    machine.waited(90_000)
    machine.later(watcher)
    assert budget.total == LIMIT
    machine.waited(90_000 + 120_000)
    machine.later(watcher)
    assert budget.total == LIMIT - LIMIT // STEP
    # The same total again: nobody waited since.
    machine.later(watcher)
    assert budget.total == LIMIT - LIMIT // STEP
    # The page cache is what is waited for.
    machine.free = LIMIT
    machine.waited(900_000)
    machine.later(watcher)
    assert budget.total == LIMIT - LIMIT // STEP


def test_a_control_group_waits_too(machine, budget):
    group = make_tree(machine.root, {}, version=2, group="a", files={"memory.pressure": ""})
    file = str((group / "memory.pressure").relative_to(machine.root))
    machine.waited(0, file)
    watcher = Watcher(budget, machine.available, machine.root)
    machine.now, machine.free = time.monotonic(), LIMIT // 3
    machine.waited(500_000, file)
    machine.later(watcher)
    assert budget.total == LIMIT - LIMIT // STEP


def test_it_grows_again_after_quiet_and_never_beyond(machine, budget, watcher):
    machine.free = 0
    machine.later(watcher)
    shrunk = budget.total
    machine.free = 8 * LIMIT
    machine.later(watcher, QUIET - 1)
    assert budget.total == shrunk
    for expected in (shrunk + LIMIT // STEP, LIMIT, LIMIT):
        machine.later(watcher, 2)
        assert budget.total == expected


def test_it_does_not_grow_into_the_reserve(machine, budget, watcher):
    machine.free = 0
    machine.later(watcher)
    shrunk = budget.total
    machine.free = 2 * (LIMIT // RESERVE)
    machine.later(watcher, 2 * QUIET)
    assert budget.total == shrunk


def test_what_the_regions_cannot_do_without(machine, budget, watcher):
    machine.free, budget.floors = 0, LIMIT - MIB
    machine.later(watcher)
    assert budget.total == LIMIT - MIB


@pytest.mark.parametrize("error", [ValueError(), TimeoutError()])
def test_a_budget_that_does_not_shrink_is_tried_again(machine, budget, watcher, error):
    machine.free, budget.raises = 0, error
    machine.later(watcher)
    budget.raises = None
    before = budget.total
    machine.later(watcher)
    assert budget.total < before


def test_what_the_user_resized_is_the_limit(machine, budget, watcher):
    budget.total = LIMIT // 4
    for _ in range(3):
        machine.later(watcher, 2 * QUIET)
    assert budget.total == LIMIT // 4


def test_nothing_is_known(machine, budget, watcher):
    machine.free = None
    assert machine.later(watcher)
    assert budget.total == LIMIT


def test_nothing_to_look_after(machine, budget, watcher):
    budget.members = 0
    assert not machine.later(watcher)


def _begin_anew(monkeypatch):
    """As if no region had asked for a budget yet; a thread that looks after one is still there."""
    monkeypatch.setattr(available, "_automatic", None)
    monkeypatch.setattr(available, "_watcher", None)
    monkeypatch.setattr(available, "_watched", False)
    monkeypatch.setattr(available, "_promised", type(available._promised)())
    monkeypatch.setattr(available, "_granted", 0)


def test_the_budget_of_auto_is_looked_after(monkeypatch, tmp_path):
    """With the thread, also while one looks after an earlier budget; and blocks in memory."""
    _begin_anew(monkeypatch)
    monkeypatch.setattr(available, "INTERVAL", 0.001)
    monkeypatch.setattr(available, "available", lambda _root=None: 4 * LEAST)
    assert available.automatic(3 * LEAST, LEAST).budget is not None
    _begin_anew(monkeypatch)
    monkeypatch.setattr(available, "INTERVAL", 0.01)
    memory = {"free": 4 * LEAST}
    monkeypatch.setattr(available, "available", lambda _root=None: memory["free"])
    nbytes = 3 * LEAST
    with (
        FileStore(make_file(tmp_path / "data", nbytes)) as store,
        pagemove.PagedMemory(store, resident_limit="auto", block_size="64KiB") as region,
    ):
        assert region.budget is not None
        assert region.budget.limit == 2 * LEAST
        region.prefetch(0, 2 * LEAST, wait=True)
        assert any(each.name == "pagemove-pressure" for each in threading.enumerate())
        memory["free"] = 0
        until = time.monotonic() + 20
        while region.budget.limit > LEAST and time.monotonic() < until:
            time.sleep(0.01)
        assert region.budget.limit == LEAST
        until = time.monotonic() + 20
        while region.stats().resident_nbytes > LEAST and time.monotonic() < until:
            time.sleep(0.01)
        assert region.stats().resident_nbytes <= LEAST

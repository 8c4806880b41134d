"""The limit of an arena that follows what is available."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.paging.arenas import new_arena
from pagemove.paging.pressure import LEAST, QUIET, RESERVE, STEP, Watcher

pytestmark = pytest.mark.needs("paging")

_MIB = 1 << 20
_LIMIT = 64 * _MIB


def _nothing(_root: Path) -> int:
    return 0


def _plenty(_root: Path) -> int:
    return 1 << 40


@pytest.mark.parametrize("used", [8 * _MIB, 48 * _MIB])
def test_it_shrinks_under_pressure_and_grows_again(used, tmp_path):
    arena, memory = new_arena(_LIMIT, _MIB, None, follows=True)
    limit = memory._follower
    assert limit is not None
    address = arena.allocate(used)
    content = np.frombuffer(memory, np.uint64)[(address - memory.address) // 8 :][: used // 8]
    content[:] = np.arange(used // 8)
    watcher = Watcher(limit, _nothing, tmp_path)
    assert memory.resident_limit == _LIMIT
    assert arena.plain_nbytes == used  # ordinary memory, as long as it fits
    watcher.look()
    first = _LIMIT - max(_LIMIT // STEP, _LIMIT // RESERVE + _LIMIT - used)
    assert memory.resident_limit == max(first, LEAST)
    for _ in range(10):
        watcher.look()
    assert memory.resident_limit == LEAST
    assert (arena.plain_nbytes == 0) is (used > LEAST)
    assert memory.counters()["resident"] <= LEAST
    assert (content == np.arange(used // 8)).all()
    assert memory.counters()["resident"] <= LEAST
    watcher._available = _plenty
    watcher.look(time.monotonic() + QUIET + 1)
    assert memory.resident_limit == LEAST + _LIMIT // STEP
    assert (content == np.arange(used // 8)).all()
    assert memory.counters()["resident"] <= memory.resident_limit
    arena.release(address)


def test_what_exceeds_it_later_is_under_the_limit_of_then(tmp_path):
    arena, memory = new_arena(_LIMIT, _MIB, None, follows=True)
    limit = memory._follower
    assert limit is not None
    limit.resize(LEAST, timeout=1)
    address = arena.allocate(3 * LEAST)
    content = np.frombuffer(memory, np.uint64)[(address - memory.address) // 8 :]
    content = content[: 3 * LEAST // 8]
    content[:] = np.arange(len(content))
    assert (content == np.arange(len(content))).all()
    assert memory.counters()["resident"] <= LEAST
    arena.release(address)


def test_only_auto_follows():
    fixed, auto = pagemove.paged_allocations("64MiB"), pagemove.paged_allocations("auto")
    assert fixed._arena()[1]._follower is None
    assert auto._arena()[1]._follower is not None
    assert "pagemove-pressure" in {thread.name for thread in threading.enumerate()}
    with auto as arena:
        assert (np.ones(1 << 18) == 1).all()
        array = np.ones(1 << 18)
    limit = auto._arena()[1]._follower
    del arena, auto
    gc.collect()
    assert limit is not None
    assert limit.counters()["members"] == 1  # for the array
    del array
    until = time.monotonic() + 10
    while limit.counters()["members"] and time.monotonic() < until:
        gc.collect()  # the thread that looks has it for a moment
        time.sleep(0.01)
    assert limit.counters()["members"] == 0

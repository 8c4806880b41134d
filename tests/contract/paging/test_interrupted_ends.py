"""Opening and closing paged memory, ended by Control-C.

The store says when it is in the midst of a call, and is held there; each test has a child that is
killed at its deadline.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory
from support import child, wait_for
from support.helpers import helpers, numbered
from support.interruptions import (
    BLOCK,
    COUNT,
    HELD,
    PROMPT,
    at,
    interrupted,
    new,
)
from support.late_stores import Unruly, unruly
from support.paging import Fault, paged
from support.threads import thread_names

pytestmark = pytest.mark.needs("paging", "fork")


def _closed(folder: Path) -> dict[str, Any]:
    """Interrupted while it saves, it is open, and can be closed again."""
    store = unruly(folder, numbered(COUNT * BLOCK))
    memory = PagedMemory(store, mode="r+", store_timeout=60, prefetch="off")
    words = memory.asarray(np.uint64)
    words += np.uint64(1)
    del words
    store.knobs.hold_writes = at(HELD)
    ended, took = interrupted(memory.close, lambda: store.knobs.held)
    closed = memory.closed
    store.knobs.hold_writes = 0
    memory.close()
    return {
        "ended": ended,
        "prompt": took < PROMPT,
        "closed": [closed, memory.closed],
        "complete": all(new(store)),
        "helpers": helpers(),
    }


def test_close_while_it_saves(tmp_path):
    assert child(_closed, tmp_path, deadline=40) == {
        "ended": True,
        "prompt": True,
        "closed": [False, True],
        "complete": True,
        "helpers": [],
    }


_OF_THE_PROCESS = ("pagemove-stderr", "pagemove-ending")


def _threads() -> list[str]:
    names = thread_names().values()
    return [name for name in names if name.startswith("pagemove-") and name not in _OF_THE_PROCESS]


def _maps(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        return any(line.startswith(f"{address:x}-") for line in maps)


def _closed_late(path: Path, mode: str) -> dict[str, Any]:
    """Interrupted when it has saved, it is closed, and its threads do the rest."""
    late = [Fault("read", count=0, delay=4.0)]
    with paged(path, mode, faults=late, block_size=BLOCK) as memory:
        address = memory.address
        memory.prefetch()
        wait_for(lambda: memory.counters()["resident"])
        ended, took = interrupted(memory.close, lambda: memory.closed)
        memory.close()
        running = bool(_threads())
        # The file is free for the next one.
        with paged(path, mode, block_size=BLOCK) as other, memoryview(other) as view:
            right = bytes(view) == path.read_bytes()
        wait_for(lambda: not _threads())
        return {
            "ended": ended,
            "prompt": took < PROMPT,
            "running": running,
            "right": right,
            "mapped": _maps(address),
        }


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_close_while_its_threads_end(file, mode):
    assert child(_closed_late, file(COUNT * BLOCK), mode, deadline=40) == {
        "ended": True,
        "prompt": True,
        "running": True,
        "right": True,
        "mapped": False,
    }


class Slow(Unruly):
    """It takes the helper as long to have it as its reads are held."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hold("reads", range(1))


def _descriptors() -> list[str]:
    """What is open, less what is opened to see that."""
    found = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [os.readlink(one) for one in found if os.path.lexists(one)]


def _opened(folder: Path) -> dict[str, Any]:
    ready = unruly(folder, numbered(COUNT * BLOCK))
    store = Slow(ready._path)
    store.knobs.hold_reads = -1
    before = _descriptors()
    ended, took = interrupted(lambda: PagedMemory(store), lambda: store.knobs.held)
    wait_for(lambda: not helpers())
    wait_for(lambda: not _threads())
    wait_for(lambda: not set(_descriptors()) - set(before))
    store.knobs.hold_reads = 0
    with PagedMemory(store) as memory, memoryview(memory) as view:
        right = bytes(view) == numbered(COUNT * BLOCK).tobytes()
    return {
        "ended": ended,
        "prompt": took < PROMPT,
        "right": right,
    }


def test_opening(tmp_path):
    """Its helper ends too, though its store never lets it begin."""
    assert child(_opened, tmp_path, deadline=60) == {
        "ended": True,
        "prompt": True,
        "right": True,
    }

"""Signals while a call of paged memory is held in its store."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pagemove import PagedMemory
from support.helpers import numbered
from support.late_stores import Unruly, in_file, unruly
from support.paging import KIB
from support.slowness import SLOWNESS
from support.threads import wait_for

BLOCK = 64 * KIB
COUNT = 40
#: As a flush writes them: the first batch is through, the second is held, the third has not begun.
BATCH = 16
HELD = 20
#: s. The store is held for much longer.
PROMPT = 3 * SLOWNESS

#: What is raised where the wait is.
RAISED = {"ctrl-c": (signal.SIGINT, KeyboardInterrupt), "alarm": (signal.SIGALRM, TimeoutError)}


def _raise_timeout(*_: object) -> None:
    raise TimeoutError("alarm")


def at(block: int) -> int:
    """A knob's value: calls with this block are held."""
    return block * BLOCK + 1


@contextmanager
def changed(folder: Path, **how: Any) -> Iterator[tuple[Unruly, PagedMemory]]:
    """A region over a store that can be held; every word is changed, nothing written."""
    signal.signal(signal.SIGALRM, _raise_timeout)
    store = unruly(folder, numbered(COUNT * BLOCK))
    with PagedMemory(store, mode="r+", store_timeout=60, prefetch="off", **how) as memory:
        words = memory.asarray(np.uint64)
        words += np.uint64(1)
        del words
        yield store, memory
        store.knobs.calm = 1


def new(store: Unruly) -> list[bool]:
    """Which blocks of the store have all of the change."""
    found = in_file(store) == numbered(COUNT * BLOCK) + np.uint64(1)
    return [bool(block.all()) for block in found.reshape(COUNT, -1)]


def old(store: Unruly) -> list[bool]:
    found = in_file(store) == numbered(COUNT * BLOCK)
    return [bool(block.all()) for block in found.reshape(COUNT, -1)]


def interrupted(
    call: Callable[[], Any], condition: Callable[[], Any], how: str = "ctrl-c"
) -> tuple[bool, float]:
    """Send a signal when the condition holds; whether it ended the call, and how soon."""
    number, raised = RAISED[how]
    moment = [0.0]

    def send() -> None:
        wait_for(condition)
        moment[0] = time.monotonic()
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        call()
    except raised:
        ended = True
    else:
        ended = False
    took = time.monotonic() - moment[0]
    sender.join()
    return ended, took

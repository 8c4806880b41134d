"""Threads that fault again and again while they wait for one block.

A thread with a signal pending, or task work of the kernel, does not sleep in a fault. In user mode
it takes the signal and faults once more. In a system call it cannot: it faults at full speed until
the fault is resolved, and each time the pager hears of it.
"""

from __future__ import annotations

import errno
import signal
import threading
from pathlib import Path

import pytest

from pagemove import PagedMemory
from pagemove._native import pager
from support import child, wait_for
from support.helpers import numbered, reined, reined_region, touch

pytestmark = [pytest.mark.needs("paging", "fork"), pytest.mark.needs("kernel_faults")]

BLOCK = 64 << 10
COUNT = 8


def _struck(region: PagedMemory, number: int) -> int | None:
    try:
        touch(region.address + number * BLOCK)
    except OSError as error:
        return error.errno
    return None


def _faults(region: PagedMemory) -> int:
    return region.counters()["faults"]


def _after_a_probe(folder: Path) -> tuple[int | None, int]:
    store, region = reined_region(folder, BLOCK, store_timeout=1)
    store.reins.hung = 1
    before = _faults(region)
    for _ in range(50):
        pager.try_ring()
    struck = _struck(region, 0)
    faults = _faults(region) - before
    store.reins.hung = 0
    region.close()
    return struck, faults


def test_the_ring_that_was_tried_leaves_nothing_to_do(tmp_path):
    """Nor a thread that opened its first region of a file, or asked for `features`."""
    assert child(_after_a_probe, tmp_path, deadline=60) == (errno.EFAULT, 1)


def _signalled(folder: Path) -> tuple[list[int | None], list[int], int, int]:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    store = reined(folder, numbered(2 * COUNT * BLOCK), concurrency=COUNT + 1)
    region = PagedMemory(store, block_size=BLOCK, store_timeout=1, prefetch="off")
    store.reins.hung = 1
    struck: list[int | None] = []

    def wait() -> None:
        struck.extend(_struck(region, number) for number in range(COUNT))

    waiting = threading.Thread(target=wait)
    waiting.start()
    for number in range(COUNT):
        wait_for(lambda number=number: number * BLOCK in store.reins.offsets)
        signal.pthread_kill(waiting.ident or 0, signal.SIGUSR1)
    waiting.join()
    found = struck, store.reins.offsets, region.counters()["errors"], _faults(region)
    store.reins.hung = 0
    region.close()
    return found


def test_a_block_that_was_given_up_is_not_tried_again(tmp_path):
    """For a fault that was reported before, and is looked at afterwards."""
    struck, read, errors, faults = child(_signalled, tmp_path, deadline=60)
    assert struck == [errno.EFAULT] * COUNT
    assert read == [number * BLOCK for number in range(COUNT)]
    assert errors == COUNT
    assert faults > COUNT, "no thread has faulted again"

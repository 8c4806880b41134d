"""Regions that share a budget, and what is asked of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pagemove import Budget, PagedMemory
from support.paging import (
    KIB,
    expected,
    paged,
    words,
)
from support.slowness import patience

#: The blocks of `regions`.
BLOCK = 64 * KIB


def touch(memory: PagedMemory, first: int = 0, count: int | None = None) -> None:
    """Touch blocks one after the other, and check what is in each."""
    number = -(-memory.nbytes // memory.block_size)
    found, each = words(memory), memory.block_size // 8
    for block in range(first, number if count is None else first + count):
        at = block * each
        assert found[at] == expected(memory.nbytes)[at]


def touch_until(holds: Callable[[], object], memory: PagedMemory) -> None:
    """Touch all blocks again and again: leases move by threads of the pager, in their own time."""
    limit = time.monotonic() + patience(60)
    while not holds():
        assert time.monotonic() < limit
        touch(memory)


def leased(budget: Budget, memory: PagedMemory) -> int:
    shares = [each for each in budget.stats().regions if each.label == str(memory.store.path)]
    assert len(shares) == 1
    return shares[0].leased_nbytes


@contextlib.contextmanager
def never_more(budget: Budget) -> Iterator[list[int]]:
    """Ask all the time whether leases are within the limit, and bytes within leases, in all too."""
    over, asked, stop = [], [0], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            stats = budget.stats()
            asked[0] += 1
            if not stats.resident_nbytes <= stats.leased_nbytes <= stats.limit:
                over.append(stats)
            over.extend(each for each in stats.regions if each.resident_nbytes > each.leased_nbytes)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        stop.set()
        thread.join()
    assert asked[0] > 10
    assert not over, over[:3]


@contextlib.contextmanager
def regions(budget: Budget, paths: list[Path], **paging: object) -> Iterator[list[PagedMemory]]:
    how = {"block_size": BLOCK, "prefetch": "off", "resident_limit": budget} | paging
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(paged(path, **how)) for path in paths]

"""Regions to pin blocks of, as a user without privileges has them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemove import PAGE_SIZE, PagedMemory, PageState, pinned
from pagemove._native import pager
from pagemove.introspect import states_at
from support.paging import (
    KIB,
    paged,
)

BLOCK = 16 * KIB
BLOCKS = 32
NBYTES = BLOCKS * BLOCK
LIMIT = 16 * BLOCK
MOST = 12


@pytest.fixture(autouse=True)
def ordinary() -> Iterator[None]:
    """Do as for a user without privileges: nobody serves the faults of system calls."""
    pager.set_kernel_faults(False)
    yield
    pager.set_kernel_faults(True)


@contextlib.contextmanager
def region(path: Path, mode: str = "r", blocks: int = 16, **paging) -> Iterator[PagedMemory]:
    how = {"resident_limit": blocks * BLOCK, "block_size": BLOCK, "prefetch": "off", **paging}
    with paged(path, mode, **how) as memory:
        yield memory


def blocks_pinned(memory: PagedMemory) -> int:
    return memory.stats().pinned_nbytes // memory.block_size


def refusal(view: object) -> str:
    """Return why a view cannot be pinned, and keep nothing of it."""
    with pytest.raises(ValueError, match="cannot pin") as caught, pinned(view):
        pass
    return str(caught.value)


def is_there(memory: PagedMemory, first: int, count: int) -> bool:
    pages = count * memory.block_size // PAGE_SIZE
    states = states_at(memory.address + first * memory.block_size, pages)
    return bool((states & PageState.PRESENT).all())


def answers(out: int, part: memoryview) -> bool:
    """Say whether a system call can read what may be poisoned for a moment."""
    with contextlib.suppress(OSError):
        return os.pwrite(out, part, 0) == len(part)
    return False

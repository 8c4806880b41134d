"""A process that wants its memory merged with like memory (KSM): a region's is not.

Merged pages cannot move, and lose their write protection: a store into one goes unnoticed.
"""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError
from support import child
from support.paging import KIB, MODES, Fault, paged, words

pytestmark = [pytest.mark.needs("paging", "ksm")]

_BLOCK = 64 * KIB
_WORDS = _BLOCK // 8
_COUNT = 64
_ALIKE = 0x0909090909090909
_PR_SET_MEMORY_MERGE = 67


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Make a file whose pages are all the same."""
    path = tmp_path / "alike"
    np.full(_COUNT * _WORDS, _ALIKE, np.uint64).tofile(path)
    return path


def merge_all() -> None:
    """Want all memory of this process merged."""
    if ctypes.CDLL(None).prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        raise NotImplementedError("PR_SET_MEMORY_MERGE: Linux 6.4")


def merged() -> int:
    """Count the merged pages of this process."""
    text = Path("/proc/self/ksm_stat").read_text()
    return int(text.partition("ksm_merging_pages ")[2].split()[0])


def bait(pages: int = 256) -> np.ndarray:
    """Make memory that is merged: when it is, the daemon has been round."""
    return np.full(pages * 512, 0x0B0B0B0B0B0B0B0B, np.uint64)


def _wait_for_the_daemon(pages: int = 200, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while merged() < pages and time.monotonic() < end:
        time.sleep(0.02)
    assert merged() >= pages


def _before(path: Path, mode: str) -> tuple[bool, int, int]:
    """Wanted before the region is made: none of its pages is merged, and all of them leave."""
    merge_all()
    kept = bait()
    how = {"block_size": _BLOCK, "resident_limit": 32 * _BLOCK, "prefetch": "off"}
    with paged(path, mode, store_timeout=2.0, **how) as memory:
        array = words(memory)
        array[: 30 * _WORDS].sum()
        _wait_for_the_daemon()
        there = np.asarray([array[block * _WORDS] for block in range(_COUNT)])
        memory.evict()
        stats = memory.stats()
        right = bool((array == _ALIKE).all()) and bool((there == _ALIKE).all())
        del array
    del kept
    return right, stats.resident_nbytes, stats.errors


@pytest.mark.parametrize("mode", MODES)
def test_no_page_is_merged_that_may_have_to_leave(alike, mode):
    assert child(_before, alike, mode, deadline=60) == (True, 0, 0)


def _later(path: Path, how: str) -> tuple[int, int, int]:
    """Wanted when the blocks are there already, clean: then one is changed."""
    with paged(path, "r+", block_size=_BLOCK, prefetch="off", store_timeout=2.0) as memory:
        array = words(memory)
        array[: 16 * _WORDS].sum()
        merge_all()
        _wait_for_the_daemon()
        array[5], array[3 * _WORDS + 1] = 77, 78
        if how == "flush":
            memory.flush()
        elif how == "evict":
            memory.evict()
        found = np.fromfile(path, np.uint64)
        seen = int(found[5]), int(found[3 * _WORDS + 1]), int(array[5])
        del array
    return seen


@pytest.mark.parametrize("how", ["flush", "evict"])
def test_stores_into_what_was_merged_later_are_not_lost(alike, how):
    assert child(_later, alike, how, deadline=60) == (77, 78, 77)


def _in_its_slot(path: Path) -> tuple[int, int]:
    """Wanted while a block is being written, which then fails, so that it has to come back."""
    faults = [
        Fault("write", first=0, count=1, delay=4.0),
        Fault("write", first=0, count=1, errno=errno.ENOSPC),
    ]
    with paged(path, "r+", faults=faults, block_size=_BLOCK, store_timeout=0.1) as memory:
        array = words(memory)
        array[:_WORDS] = 0x0707070707070707
        codes: list[int | None] = []

        def evict() -> None:
            try:
                memory.evict(0, _BLOCK)
                codes.append(None)
            except StoreError as error:
                codes.append(error.errno)

        evicting = threading.Thread(target=evict)
        evicting.start()
        kept = bait()
        merge_all()
        _wait_for_the_daemon()
        evicting.join(20)
        wrong = int((array[:_WORDS] != 0x0707070707070707).sum())
        memory.flush()
        wrong += int((np.fromfile(path, np.uint64)[:_WORDS] != 0x0707070707070707).sum())
        del array, kept
    return wrong, codes[0] or 0


def test_what_is_merged_in_its_slot_comes_back(alike):
    assert child(_in_its_slot, alike, deadline=60) == (0, errno.ENOSPC)

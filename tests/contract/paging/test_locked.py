"""Paged memory that the program locks (mlock): it arrives, stays, and is free when it is freed."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedAllocations, PagedMemory
from pagemove._native import pager
from pagemove.stores import FileStore
from support import ChildFailed, child
from support.paging import Words, noise
from support.slowness import patience
from support.system import mlock, munlock

pytestmark = [
    pytest.mark.needs("paging", "fork"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

MIB = 1 << 20
_BLOCK = 65536


def _locked_bytes() -> int:
    found = re.search(r"VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _arrives(how: str) -> list[int]:
    size = 16 * _BLOCK
    with PagedMemory(nbytes=size, resident_limit=8 * _BLOCK, block_size=_BLOCK) as region:
        words = region.asarray(np.uint64)
        words[:] = np.arange(len(words))
        region.evict()
        mlock(region.address, _BLOCK)
        if how == "written":
            words[:8192] += np.uint64(1)
            words[8192:].sum()
        found = [int(words[0]), int(words[8191]), region.stats().errors]
        munlock(region.address, _BLOCK)
        del words
    return found


@pytest.mark.parametrize("how", ["absent", "written"])
def test_a_block_that_is_locked_arrives(how):
    more = how == "written"
    assert child(_arrives, how, deadline=60) == [more, 8191 + more, 0]


def _freed(limit: int, on_fault: bool) -> tuple[int, int, int]:
    paged = PagedAllocations(limit, store_limit=64 * MIB, min_size="256KiB")
    with paged:
        for seed in range(12):
            array = noise(2 * MIB, seed)
            mlock(array.ctypes.data, array.nbytes, on_fault=on_fault)
            assert (array == noise(2 * MIB, seed)).all()
            del array
        zeros = np.zeros(40 * MIB, np.uint8)  # the last of them is kept until there is this
        locked = _locked_bytes()
        changed = np.count_nonzero(zeros)
        zeros[:] = 7
        right = np.count_nonzero(zeros == 7)
    return locked, int(changed), int(right)


@pytest.mark.parametrize("on_fault", [False, True])
def test_what_is_freed_is_locked_no_more(on_fault):
    """Whoever has the memory next finds zeros, and blocks that can leave: the whole limit is
    locked several times over."""
    assert child(_freed, 8 * MIB, on_fault, deadline=60) == (0, 0, 40 * MIB)


def _freed_below_the_limit() -> tuple[int, int]:
    """What is kept for the next array of its size stays locked; what is not, does not."""
    paged = PagedAllocations(8 * MIB, min_size="256KiB")
    with paged:
        arrays = [noise(3 * MIB, seed) for seed in range(2)]
        for array in arrays:
            mlock(array.ctypes.data, array.nbytes)
        del array
        arrays.clear()
        other = np.ones(7 * MIB, np.uint8)
        zeros = np.zeros(MIB, np.uint8)
        return _locked_bytes(), int(np.count_nonzero(zeros)) + int(np.count_nonzero(other != 1))


def test_what_is_freed_below_the_limit_is_zeros_again():
    assert child(_freed_below_the_limit, deadline=60) == (0, 0)


def _saved(path: Path, how: str) -> list[object]:
    """Store to a file's region that is locked in part, also while it is flushed."""
    size, found = 16 * _BLOCK, []
    np.zeros(size // 8, np.uint64).tofile(path)
    with PagedMemory(
        FileStore(path, writable=True), resident_limit=8 * _BLOCK, block_size=_BLOCK, mode="r+"
    ) as region:
        words = region.asarray(np.uint64)
        mlock(region.address, 2 * _BLOCK + PAGE_SIZE)
        for turn in range(1, 4):
            words[:] = turn
            ended = threading.Event()
            counting = threading.Thread(target=_count, args=(words, ended))
            counting.start()
            if how == "flush":
                region.flush()
                found.append(set(np.fromfile(path, np.uint64)[1:]) == {turn})
            else:
                began = time.monotonic()
                region.evict()
                found.append(time.monotonic() - began < patience(4))
            ended.set()
            counting.join()
        last = int(words[0])
        found += [region.stats().errors, last > 0]
        del words
    saved = np.fromfile(path, np.uint64)
    return [*found, int(saved[0]) == last, set(saved[1:]) == {3}]


def _count(words: Words, ended: threading.Event) -> None:
    while not ended.is_set():
        words[0] += np.uint64(1)


@pytest.mark.parametrize("how", ["flush", "evict"])
def test_what_is_stored_to_a_locked_block_is_saved(tmp_path, how):
    found = child(_saved, tmp_path / "file", how, deadline=120)
    assert found == [True, True, True, 0, True, True, True]


def _grown(limit: int) -> list[bool]:
    found = []
    with PagedAllocations(limit, store_limit=64 * MIB, min_size="256KiB"):
        others = [noise(MIB, seed) for seed in range(12)]
        for seed in range(6):
            array = noise(MIB, 100 + seed)
            mlock(array.ctypes.data, array.nbytes // 2)
            blocked = noise(MIB, 200 + seed)
            array.resize(6 * len(array), refcheck=False)
            found.append(bool((array[: MIB // 8] == noise(MIB, 100 + seed)).all()))
            found.append(not array[MIB // 8 :].any())
            found.append(bool((blocked == noise(MIB, 200 + seed)).all()))
            del array
        found += [bool((other == noise(MIB, seed)).all()) for seed, other in enumerate(others)]
    return found


def test_what_is_locked_in_part_grows():
    assert all(child(_grown, 6 * MIB, deadline=60))


def _all_locked() -> str:
    with PagedMemory(nbytes=32 * _BLOCK, resident_limit=4 * _BLOCK, block_size=_BLOCK) as region:
        mlock(region.address, 4 * _BLOCK)
        region.asarray(np.uint64)[16 * 8192] = 1
    return "lived"


def test_where_all_of_the_limit_is_locked_the_message_says_so(capfd):
    with pytest.raises(ChildFailed) as failed:
        child(_all_locked, deadline=60)
    assert failed.value.signal == signal.SIGBUS
    assert "locked (mlock)" in capfd.readouterr().err

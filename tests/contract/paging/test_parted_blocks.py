"""Blocks in two mappings, since the program has advised a part of one; and what cannot leave."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import PAGE_SIZE, PagedMemory
from pagemove.stores import CallableStore
from support import ChildFailed, child
from support.system import mlock, munlock

pytestmark = pytest.mark.needs("paging", "fork")

MIB = 1 << 20
_BLOCK = 65536
_HALF = _BLOCK // 2
Words = npt.NDArray[np.uint64]
_libc = ctypes.CDLL(None, use_errno=True)

#: Advice after which what was advised is a mapping of its own.
_ADVICE = {
    "random": mmap.MADV_RANDOM,
    "sequential": mmap.MADV_SEQUENTIAL,
    "huge": mmap.MADV_HUGEPAGE,
}


def _advise(address: int, nbytes: int, how: str) -> None:
    if how == "locked":
        mlock(address, nbytes, on_fault=True)
    elif _libc.madvise(
        ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_int(_ADVICE[how])
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mappings(address: int, nbytes: int) -> int:
    """Count those that have a part of it."""
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    return sum(start < address + nbytes and end > address for start, end in ranges)


def _parted(how: str, when: str) -> list[bool]:
    """Part every block of a region; let all leave, come, and leave again as changed ones."""
    found = []
    with PagedMemory(nbytes=64 * _BLOCK, resident_limit=8 * _BLOCK, block_size=_BLOCK) as region:
        words = region.asarray("u8")
        expected = np.random.default_rng(0).integers(0, 1 << 20, len(words), np.uint64)
        words[:] = expected
        blocks = range(region.address, region.address + region.nbytes, 2 * _BLOCK)
        if when == "absent":
            region.evict()
        for address in list(blocks)[: 2 if how == "locked" else None]:
            if when == "resident":
                ctypes.c_uint64.from_address(address).value += 0
            _advise(address + _HALF, _BLOCK, how)
            found.append(_mappings(address, _BLOCK) == 2)
        for _ in range(3):
            found.append(bool((words == expected).all()))
            words += np.uint64(1)
            expected += np.uint64(1)
        words[5 :: _BLOCK // 8] = 7
        expected[5 :: _BLOCK // 8] = 7
        if how != "locked":
            region.evict()
            found.append(region.stats().resident_nbytes == 0)
        found.append(bool((words == expected).all()))
        del words
    return found


@pytest.mark.parametrize("when", ["absent", "resident"])
@pytest.mark.parametrize("how", [*_ADVICE, "locked"])
def test_they_leave_and_arrive(how, when):
    assert all(child(_parted, how, when, deadline=60))


def _unreadable(nbytes: int) -> None:
    def read(offset: int, buffer: memoryview) -> None:
        raise OSError(5, "gone")

    with PagedMemory(
        CallableStore(read, nbytes), resident_limit=4 * _BLOCK, block_size=_BLOCK, store_timeout=0.2
    ) as region:
        _advise(region.address + _HALF, PAGE_SIZE, "random")
        ctypes.c_uint64.from_address(region.address).value  # noqa: B018


def test_one_that_cannot_be_read_ends_the_touch():
    with pytest.raises(ChildFailed) as failed:
        child(_unreadable, 16 * _BLOCK, deadline=30)
    assert failed.value.signal == signal.SIGBUS


def _refused(lock: Callable[[int, int], None], unlock: Callable[[int, int], None]) -> list[bool]:
    """Touch much more than the limit at random, while most of the limit cannot leave."""
    draw, found = random.Random(1), []
    with PagedMemory(nbytes=96 * _BLOCK, resident_limit=32 * _BLOCK, block_size=_BLOCK) as region:
        words = region.asarray("u8").reshape(96, -1)
        words[:] = np.arange(96, dtype=np.uint64)[:, None]
        for _ in range(3):
            words[:20].sum()
            lock(region.address, 20 * _BLOCK)
            for _ in range(3000):
                number = 20 + draw.randrange(38 if draw.random() < 0.8 else 76)
                words[number, draw.randrange(words.shape[1])] = number
            found.append(bool((words == np.arange(96)[:, None]).all()))
            unlock(region.address, 20 * _BLOCK)
            words[20:].sum()
        # They can leave again, and do.
        before = region.stats().resident_nbytes
        region.evict()
        found += [before <= 32 * _BLOCK, region.stats().resident_nbytes == 0]
        del words
    return found


def _protect(prot: int) -> Callable[[int, int], None]:
    def protect(address: int, nbytes: int) -> None:
        where = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
        assert _libc.mprotect(*where, ctypes.c_int(prot)) == 0

    return protect


@pytest.mark.parametrize("how", ["locked", "read-only"])
def test_what_cannot_leave_is_not_in_the_way_of_what_can(how):
    if how == "locked":
        ways = mlock, munlock
    else:
        ways = _protect(mmap.PROT_READ), _protect(mmap.PROT_READ | mmap.PROT_WRITE)
    assert all(child(_refused, *ways, deadline=120))

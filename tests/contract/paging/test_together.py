"""Neighbours move by one call, as far as they can; what it stops at leaves as it would alone."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove import PAGE_SIZE, PagedMemory
from support import child
from support.system import mlock, munlock
from support.trouble import MOVE_OUT, refused

pytestmark = pytest.mark.needs("paging", "fork")

_BLOCK, _BLOCKS, _FRAMES = 65536, 256, 64
_WORDS = _BLOCK // 8
Words = npt.NDArray[np.uint64]
_libc = ctypes.CDLL(None, use_errno=True)


def _advise(address: int, advice: int) -> None:
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE), ctypes.c_int(advice)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _disturb(how: str, address: int) -> None:
    """Do something to a page of a block that is there, and unchanged."""
    if how == "locked":
        mlock(address, PAGE_SIZE)
    elif how == "locked once":
        mlock(address, PAGE_SIZE)
        munlock(address, PAGE_SIZE)
    elif how == "advised":
        _advise(address, mmap.MADV_RANDOM)
    elif how == "discarded":
        _advise(address, mmap.MADV_DONTNEED)


def _passes(how: str, where: int) -> list[bool]:
    """Go through all blocks, some of which are disturbed; change each the second time."""
    found = []
    size = {"nbytes": _BLOCKS * _BLOCK, "block_size": _BLOCK}
    with PagedMemory(resident_limit=_FRAMES * _BLOCK, **size) as region:
        words = region.asarray("u8").reshape(_BLOCKS, _WORDS)
        numbers = np.arange(_BLOCKS, dtype=np.uint64)[:, None]
        words[:] = numbers * 3 + np.arange(_WORDS, dtype=np.uint64)
        for turn in range(6):
            region.flush()
            for block in range(_BLOCKS):
                expected = np.arange(_WORDS, dtype=np.uint64) + 3 * block + turn // 2
                found.append(bool((words[block] == expected).all()))
                few = how != "locked" or block < _FRAMES // 2
                if turn % 2 == 0 and block % 5 == 2 and few:
                    _disturb(how, words[block].ctypes.data + where * PAGE_SIZE)
                elif turn % 2:
                    words[block] += 1
            found.append(region.stats().resident_nbytes <= _FRAMES * _BLOCK)
        del words
    return found


@pytest.mark.parametrize("where", [0, 7, 15], ids=["first", "middle", "last"])
@pytest.mark.parametrize("how", ["not", "locked", "locked once", "advised", "discarded"])
def test_all_have_what_was_stored(how, where):
    assert all(child(_passes, how, where, deadline=60))


def _refused_after_a_fork() -> bool:
    """Have a page here and there refuse to move, of blocks that leave together."""
    rng = random.Random(1)
    with pagemove.paged_allocations("4MiB", min_size="256KiB"):
        words = np.zeros(2 << 20, np.uint64)
        expected = np.arange(1, len(words) + 1, dtype=np.uint64)
        words[:] = expected
        if not os.fork():
            os._exit(0)
        os.wait()
        for _ in range(10):
            period = rng.choice([37, 64, 101])
            first = rng.randrange(period)
            with refused(MOVE_OUT, code=errno.EBUSY, first=first, count=1, period=period):
                for start in range(0, len(words), _WORDS):
                    words[start : start + _WORDS] += 1
            expected += 1
            if not (words == expected).all():
                return False
    return True


def test_what_has_moved_of_a_block_is_kept_where_the_rest_cannot_move():
    assert child(_refused_after_a_fork, deadline=60)

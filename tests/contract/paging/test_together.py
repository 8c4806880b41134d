"""Neighbours move by one call, as far as they can; what it stops at leaves as it would alone."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import PAGE_SIZE, PagedMemory
from support import child
from support.system import mlock, munlock

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

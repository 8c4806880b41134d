"""Compressed memory that is read from end to end, again and again, at a limit."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import PagedMemory
from pagemove._native import pager
from support import child
from support.system import mlock
from support.trouble import MOVE_OUT, refused

pytestmark = [
    pytest.mark.needs("paging"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

_BLOCK = 65536
_FRAMES, _BLOCKS = 1024, 1152
_WORDS = _BLOCK // 8
Words = npt.NDArray[np.uint64]


def _region() -> PagedMemory:
    """Open one that does not fit its limit."""
    return PagedMemory(nbytes=_BLOCKS * _BLOCK, block_size=_BLOCK, resident_limit=_FRAMES * _BLOCK)


def _filled(region: PagedMemory) -> Words:
    """Give each block contents of its own."""
    words = np.frombuffer(region, np.uint64)
    for block in range(_BLOCKS):
        words[block * _WORDS : (block + 1) * _WORDS] = np.arange(block, block + _WORDS)
    return words


def _check(words: Words, block: int) -> None:
    part = words[block * _WORDS : (block + 1) * _WORDS]
    assert np.array_equal(part, np.arange(block, block + _WORDS))


def _loops(times: int) -> list[int]:
    """Return how many blocks were read in each of some loops over all of them."""
    read = []
    with _region() as region:
        words = _filled(region)
        for _ in range(times):
            before = region.stats().bytes_read
            for block in range(_BLOCKS):
                _check(words, block)
            read.append((region.stats().bytes_read - before) // _BLOCK)
            assert region.stats().resident_nbytes <= _FRAMES * _BLOCK
        del words
    return read


def test_most_of_what_fits_stays():
    read = child(_loops, 8, deadline=60)
    # All that does not fit, and 4 MiB: what is just before the reader, and behind it.
    assert sorted(read[2:])[2] <= 2.5 * (_BLOCKS - _FRAMES)


def _scan_where_nothing_moves() -> int:
    """Return how many blocks have left."""
    with _region() as region:
        words = _filled(region)
        region.evict()  # changed ones cannot leave otherwise
        assert words[::_WORDS].sum() == sum(range(_BLOCKS))
        before = region.stats().evicted
        # Some have to: not all are known to be of a sequence. All are more than 3000.
        with refused(MOVE_OUT, first=2000):
            for _ in range(3):
                for block in range(_BLOCKS):
                    _check(words, block)
        assert region.stats().resident_nbytes <= _FRAMES * _BLOCK
        del words
        return region.stats().evicted - before


def test_clean_blocks_leave_without_being_moved():
    evicted = child(_scan_where_nothing_moves, deadline=60)
    assert evicted >= 3 * (_BLOCKS - _FRAMES)


def _scan_beside_locked_blocks() -> None:
    with _region() as region:
        words = _filled(region)
        region.evict()
        for turn in range(4):
            for block in range(_BLOCKS):
                _check(words, block)
                if not turn and block % 300 == 200:
                    mlock(words.ctypes.data + block * _BLOCK, _BLOCK)
        assert region.stats().resident_nbytes <= _FRAMES * _BLOCK
        first = (words.ctypes.data + 200 * _BLOCK) // os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek(8 * first)
            (entry,) = np.frombuffer(pagemap.read(8), np.uint64)
        assert int(entry) >> 63
        del words


def test_what_is_locked_stays_among_those_that_leave():
    child(_scan_beside_locked_blocks, deadline=60)

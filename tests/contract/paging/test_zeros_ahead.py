"""Zeros that are filled one after the other are read ahead, and nothing that no array has."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import pagemove
from pagemove._native import pager
from support import child

if TYPE_CHECKING:
    import numpy.typing as npt

pytestmark = [
    pytest.mark.needs("paging"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

_MIB = 1 << 20
_BLOCK = 131072


def _fill(array: npt.NDArray[np.uint8], value: int = 1) -> None:
    """Store to one block after the other, each some time after the one before."""
    for start in range(0, array.size, _BLOCK):
        array[start : start + _BLOCK] = value
        time.sleep(0.0005)


def test_an_array_is_filled_with_fewer_faults_than_it_has_blocks():
    with pagemove.paged_allocations("8MiB") as arena:
        array = np.empty(32 * _MIB, np.uint8)
        _fill(array)
        stats = arena.stats().paging
        assert (array == 1).all()
    assert stats.faults <= array.size / _BLOCK / 2
    assert stats.prefetched


@pytest.mark.parametrize("nbytes", [_MIB, 5 * _MIB // 2])
def test_nothing_comes_behind_an_array(nbytes):
    with pagemove.paged_allocations(pagemove.Budget("64MiB")) as arena:
        arrays = []
        for _ in range(6):
            arrays.append(np.empty(nbytes, np.uint8))
            _fill(arrays[-1])
        stats = arena.stats()
    assert stats.paging.prefetched
    assert stats.paging.resident_nbytes <= stats.nbytes


def test_nothing_is_left_of_what_was_freed_while_it_came():
    with pagemove.paged_allocations(pagemove.Budget("64MiB")) as arena:
        for filled in range(16):
            array = np.empty(4 * _MIB, np.uint8)
            _fill(array[: (filled + 1) * 2 * _BLOCK])
            del array
            assert arena.stats().paging.resident_nbytes == 0
        assert arena.stats().paging.prefetched


def test_what_an_array_has_lost_and_has_again_is_zeros():
    with pagemove.paged_allocations(pagemove.Budget("64MiB")) as arena:
        array = np.empty(4 * _MIB, np.uint8)
        for _ in range(16):
            _fill(array, 7)
            array.resize(2 * _MIB, refcheck=False)
            assert arena.stats().paging.resident_nbytes <= arena.stats().nbytes
            array.resize(4 * _MIB, refcheck=False)
            assert (array[: 2 * _MIB] == 7).all()
            assert not array[2 * _MIB :].any()


def _touch_what_is_free() -> list[int]:
    """Read what no array has any more, by more threads at once than the pager doubts touches of."""
    found = []
    with pagemove.paged_allocations(pagemove.Budget("16MiB")) as arena:
        array = np.ones(8 * _MIB, np.uint8)
        address = array.ctypes.data
        del array
        start = threading.Barrier(24)

        def read(first: int) -> None:
            start.wait()
            pages = range(address + first * 4096, address + 8 * _MIB, 24 * 4096)
            found.extend(ctypes.c_uint8.from_address(page).value for page in pages)

        threads = [threading.Thread(target=read, args=(each,)) for each in range(24)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert arena.stats().arrays == 0
    return found


def test_a_touch_of_what_was_freed_is_answered_all_the_same():
    assert child(_touch_what_is_free, deadline=60) == [0] * (8 * _MIB // 4096)

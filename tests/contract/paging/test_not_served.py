"""Arrays become more than the limit where the pager cannot be switched on: what is said."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove import PAGE_SIZE
from pagemove._native import pager
from support import child
from support.paging import noise

pytestmark = [
    pytest.mark.needs("paging", "fork"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

MIB = 1 << 20
_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


def _put_over(state: str, address: int) -> None:
    """Unmap a page, or map one of a file there."""
    if state == "unmapped":
        assert _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE)) == 0
        return
    fd = os.open(__file__, os.O_RDONLY)
    words = PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED, fd, 0
    found = _libc.mmap(ctypes.c_void_p(address), *(ctypes.c_long(word) for word in words))
    assert found == address
    os.close(fd)


def _noise(nbytes: int, seed: int) -> npt.NDArray[np.uint8]:
    return noise(nbytes, seed).view(np.uint8)


def _in_a_child(right: Callable[[], bool]) -> int:
    pid = os.fork()
    if not pid:
        os._exit(0 if right() else 1)
    return os.waitpid(pid, 0)[1]


def _more_than_the_limit(state: str, made: list[npt.NDArray[np.uint8]]) -> None:
    with pagemove.paged_allocations(16 * MIB):
        made += [_noise(MIB, seed) for seed in range(12)]
        where = made[-1].ctypes.data
        _put_over(state, where + (-where) % PAGE_SIZE)
        made += [_noise(MIB, seed) for seed in range(12, 20)]


def _not_served(state: str) -> tuple[list[str], int]:
    """The pager is to be switched on, with something over an array that cannot be paged."""
    made: list[npt.NDArray[np.uint8]] = []
    with pytest.raises(MemoryError) as raised:
        _more_than_the_limit(state, made)

    def right() -> bool:
        return all(np.array_equal(each, _noise(MIB, seed)) for seed, each in enumerate(made[:11]))

    return raised.value.__notes__, _in_a_child(right)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("unmapped", "Cannot allocate memory. A part"),
        ("a private file", "Invalid argument. Something"),
    ],
)
def test_what_keeps_arrays_from_being_paged_is_said(state, cause):
    notes, in_a_child = child(_not_served, state, deadline=60)
    assert len(notes) == 1
    assert cause in notes[0]
    assert "more than 16 MiB (limit)" in notes[0]
    assert in_a_child == 0

"""Several regions of one process: what one of them waits for holds up no other."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from support import child, together, wait_for
from support.paging import KIB, Fault, expected, load, paged, words, wrong_words

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_NBYTES = 16 * _BLOCK
_HOW = {"block_size": _BLOCK, "resident_limit": 4 * _BLOCK, "prefetch": "off"}


def _beside_a_late_one(late: Path, path: Path, mode: str) -> tuple[bool, str | None, int]:
    """Use a region, through its limit, while a thread waits for the first block of another."""
    waits = [Fault("read", count=1, delay=4.0)]
    with paged(late, "r", faults=waits, **_HOW) as other, paged(path, mode, **_HOW) as memory:
        thread = threading.Thread(target=load, args=(other.address,))
        thread.start()
        assert wait_for(lambda: other.stats().faults, 20)
        wrong = wrong_words(words(memory))
        if mode != "r":
            words(memory)[::64] += np.uint64(1)
        memory.flush()
        memory.evict()
        waiting = thread.is_alive()
        thread.join()
        return waiting, wrong or wrong_words(words(other)), memory.stats().resident_nbytes


@pytest.mark.parametrize(
    "mode",
    [pytest.param("r", marks=pytest.mark.slow), "r+", pytest.param("c", marks=pytest.mark.slow)],
)
def test_a_late_store_holds_up_no_other_region(file, mode):
    path = file(_NBYTES)
    found = child(_beside_a_late_one, file(_NBYTES), path, mode, deadline=120)
    assert found == (True, None, 0)
    on_disk = np.fromfile(path, np.uint64)
    on_disk[::64] -= np.uint64(mode == "r+")
    assert wrong_words(on_disk) is None


def _closed_at_once(paths: list[Path]) -> list[int]:
    """Close regions at the same time, each of which has late writes and late reads under way."""
    late = [Fault("write", count=0, delay=0.05), Fault("read", count=0, delay=0.02)]
    left = []

    def use(path: Path) -> None:
        with paged(path, "r+", faults=late, **_HOW) as memory:
            words(memory)[::64] += np.uint64(1)
            words(memory)[-1:] += np.uint64(0)  # whatever was written ahead, this has not been
            left.append(memory.stats().dirty_nbytes)
            memory.prefetch(0, 4 * _BLOCK)

    together(*[lambda path=path: use(path) for path in paths])
    return left


def test_late_writes_of_regions_that_are_closed_at_once_all_arrive(file):
    paths = [file(_NBYTES, tag) for tag in range(3)]
    left = child(_closed_at_once, paths, deadline=120)
    assert len(left) == 3
    assert all(left), "nothing is left to be written"
    for tag, path in enumerate(paths):
        wanted = expected(_NBYTES, tag).copy()
        wanted[::64] += np.uint64(1)
        assert (np.fromfile(path, np.uint64) == wanted).all()

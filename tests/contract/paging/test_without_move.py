"""Paged memory without UFFDIO_MOVE and UFFDIO_POISON: slower, and as right as with them.

Here the kernel has both and is not asked to use them. On a kernel that really lacks them all tests
of paged memory run this way; PAGEMOVE_TEST_WITHOUT_MOVE=1 makes them do so here.
"""

from __future__ import annotations

import mmap
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import features, lowlevel, vmas
from pagemove._native import pager
from support import child, paging
from support.helpers import touch
from support.paging import (
    COUNT,
    KIB,
    MODES,
    RANDOM,
    SLACK,
    Peak,
    Struck,
    Worker,
    load,
    make_file,
    paged,
    shared_zeros,
    words,
    wrong_words,
)

pytestmark = pytest.mark.needs("paging", "fork")

_BLOCK = 16 * KIB
_BLOCKS = 40
_LIMIT = 8 * _BLOCK


def without_move(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a child whose regions do not move pages."""
    paging.build()
    return child(_without_move, function, arguments, deadline=60)


def _without_move(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    pager.set_moves(False)
    return function(*arguments)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_file(tmp_path / "file", _BLOCKS * _BLOCK)


def _count(path: Path, mode: str) -> tuple[int, int, str | None]:
    shadow = shared_zeros(_BLOCKS * _BLOCK // 8)
    with (
        Peak() as peak,
        paged(path, mode, block_size=_BLOCK, resident_limit=_LIMIT) as memory,
    ):
        assert not memory.moves
        kind = {} if mode == "r" else {"kind": COUNT, "shadow": shadow}
        workers = [
            Worker(memory, order=RANDOM, steps=600, seed=seed, number=seed, of=2, **kind)
            for seed in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        stats = memory.stats()
        wrong = wrong_words(words(memory), shadow=None if mode == "r" else shadow)
        return stats.remapped, peak.nbytes, wrong


@pytest.mark.parametrize("mode", MODES)
def test_no_store_is_lost_and_the_limit_holds(path, mode):
    remapped, peak, wrong = without_move(_count, path, mode)
    assert wrong is None
    assert remapped > _BLOCKS
    assert peak <= _LIMIT + SLACK


def test_what_is_flushed_is_in_the_file(path):
    without_move(_flush, path)
    assert (np.fromfile(path, np.uint64) == 7).all()


def _flush(path: Path) -> None:
    with paged(path, "r+", block_size=_BLOCK, resident_limit=_LIMIT) as memory:
        words(memory)[:] = 7
        memory.flush()
        assert (np.fromfile(path, np.uint64) == 7).all()


def test_the_number_of_mappings_is_bounded(path):
    """A frame that a block has left by mremap may be a mapping of its own; nothing else splits."""
    opened, most = without_move(_mappings, path)
    assert most <= opened + 2 * (_LIMIT // _BLOCK)


def _mappings(path: Path) -> tuple[int, int]:
    with paged(path, "r+", block_size=_BLOCK, resident_limit=_LIMIT) as memory:
        opened = most = _served()
        for turn in range(40):
            words(memory)[:] = turn
            most = max(most, _served())
    return opened, most


def _served() -> int:
    """Count the mappings whose missing pages a userfaultfd serves: not the heaps of threads."""
    return sum("um" in each.flags for each in vmas())


def test_an_unreadable_block_raises_sigbus_until_evicted(path):
    without_move(_poison, path)


def _poison(path: Path) -> None:
    at = 5 * _BLOCK
    with paged(path, "r+", block_size=_BLOCK, store_timeout=0.2) as memory:
        contents = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(at)
        with pytest.raises(Struck) as struck:
            load(memory.address + at)
        assert struck.value.signal == signal.SIGBUS
        with pytest.raises(OSError, match="Bad address"):
            touch(memory.address + at)
        assert load(memory.address + at - 8) == contents[at - 8 : at]
        path.write_bytes(contents)
        memory.evict(at, 1)
        assert load(memory.address + at) == contents[at : at + 8]
        words(memory)[at // 8] = 1
        memory.evict()
        assert words(memory)[at // 8] == 1


def test_the_users_own_discard_of_a_clean_block_reads_it_again(path):
    without_move(_discard, path)


def _discard(path: Path) -> None:
    with paged(path, block_size=_BLOCK) as memory:
        first = load(memory.address)
        lowlevel.madvise(memory.address, 4096, mmap.MADV_DONTNEED)
        assert load(memory.address) == first


@pytest.mark.needs("without_move")
def test_features_say_so():
    found = features()
    assert found.paging == "mremap"
    found.require("paging")
    assert any(problem.name == "paging_by_move" for problem in found.problems)
    assert not found.remap_anon_pages

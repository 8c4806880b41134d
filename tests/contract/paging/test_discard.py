"""Point 7: MADV_DONTNEED on a clean block refetches it, whole or in part; a hole is never zeros."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, lowlevel
from support import child
from support.paging import (
    ADVISE,
    BLOCKS,
    COUNT,
    DISCARD,
    KIB,
    MODES,
    RANDOM,
    READ,
    SEQUENTIAL,
    Worker,
    expected,
    make_file,
    paged,
    words,
    wrong_words,
)

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_NBYTES = 16 * _BLOCK


def discard(memory, offset: int, length: int) -> None:
    lowlevel.madvise(memory.address + offset, length, mmap.MADV_DONTNEED)


def _whole(path: Path, mode: str, block: int) -> tuple[bool, str | None]:
    with paged(path, mode, block_size=block) as memory:
        int(words(memory).sum())
        make_file(path, path.stat().st_size, 1)  # in place: the same file with other contents
        stale = (words(memory)[: block // 8] == expected(block)).all()
        discard(memory, 0, memory.nbytes)
        return bool(stale), wrong_words(words(memory), 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_whole_block_is_read_again(file, mode, block):
    stale, wrong = child(_whole, file(4 * block), mode, block)
    assert stale, "the region did not keep what it had read"
    assert wrong is None


def _part(path: Path, mode: str, block: int) -> str | None:
    pages = block // PAGE_SIZE
    with paged(path, mode, block_size=block) as memory:
        int(words(memory).sum())
        make_file(path, path.stat().st_size, 1)
        for number in range(4):
            first = (5 * number + 1) % pages
            discard(memory, number * block + first * PAGE_SIZE, PAGE_SIZE)
            at = (number * block + first * PAGE_SIZE) // 8
            wrong = wrong_words(words(memory)[at : at + 512], 1, first=at)
            if wrong:
                return wrong
        found = words(memory).copy()
    either = (found == expected(4 * block)) | (found == expected(4 * block, 1))
    return None if either.all() else "words that the file never had"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_page_of_a_block_is_read_again(file, mode, block):
    assert child(_part, file(4 * block), mode, block) is None


STEPS = {
    "evict": lambda memory: memory.evict(),
    "flush": lambda memory: memory.flush(),
    "prefetch": lambda memory: memory.prefetch(wait=True),
    "push out": lambda memory: int(words(memory)[:: _BLOCK // 8].sum()),
    "evict one": lambda memory: memory.evict(0, 1),
}


def _then(path: Path, mode: str, step: str, pages: tuple[int, int]) -> str | None:
    """Leave holes in resident blocks, then let something else happen to these blocks."""
    with paged(path, mode, block_size=_BLOCK, resident_limit=6 * _BLOCK) as memory:
        for _ in range(3):
            for number in range(4):
                words(memory)[number * _BLOCK // 8].item()
                first, count = pages
                discard(memory, number * _BLOCK + first * PAGE_SIZE, count * PAGE_SIZE)
            STEPS[step](memory)
            wrong = wrong_words(words(memory)[: 4 * _BLOCK // 8])
            if wrong:
                return wrong
        return wrong_words(words(memory))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("pages", [(0, 1), (5, 3), (15, 1), (0, 16), (1, 15)])
def test_holes_do_not_become_zeros(file, mode, step, pages):
    path = file(_NBYTES)
    assert child(_then, path, mode, step, pages) is None
    assert wrong_words(np.fromfile(path, np.uint64)) is None


def _written_after(path: Path, mode: str) -> tuple[int, int]:
    """A page of a clean block is discarded, read again, and then written."""
    with paged(path, mode, block_size=_BLOCK) as memory:
        array = words(memory)
        at = PAGE_SIZE // 8
        array[0].item()
        discard(memory, PAGE_SIZE, PAGE_SIZE)
        array[at].item()
        array[at] = 1
        dirty = memory.stats().dirty_nbytes
        memory.evict()
        found = array[at].item()
        del array
    return dirty, found


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_page_that_was_read_again_is_watched_as_before(file, mode):
    assert child(_written_after, file(_NBYTES), mode) == (_BLOCK, 1)


def _dirty_part(path: Path, step: str) -> tuple[str | None, str | None]:
    """Changes that the user discards are the user's loss, page by page, and nobody else's."""
    with paged(path, "r+", block_size=_BLOCK, resident_limit=6 * _BLOCK) as memory:
        array = words(memory)
        shadow = np.zeros(len(array), np.uint32)
        array[: 4 * _BLOCK // 8] += np.uint64(1)
        shadow[: 4 * _BLOCK // 8] = 1
        for number in range(4):
            at = number * _BLOCK + 3 * PAGE_SIZE
            discard(memory, at, 2 * PAGE_SIZE)
            shadow[at // 8 : (at + 2 * PAGE_SIZE) // 8] = 0
        STEPS[step](memory)
        # What was discarded is as the store has it; it may have been stored before.
        lost = shadow == 0
        found = array.copy()
        stored = found == expected(_NBYTES) + np.uint64(1)
        found[lost & stored] -= np.uint64(1)
        seen = wrong_words(found, shadow=shadow)
        del array
    found = np.fromfile(path, np.uint64)
    found[lost & (found == expected(_NBYTES) + np.uint64(1))] -= np.uint64(1)
    return seen, wrong_words(found, shadow=shadow)


@pytest.mark.parametrize("step", STEPS)
def test_discarded_changes_are_as_the_store_has_them(file, step):
    assert child(_dirty_part, file(_NBYTES), step) == (None, None)


def _spilled_in_part(path: Path) -> np.ndarray:
    """A private change leaves for its file for the first time, without a page of its block."""
    with paged(path, "c", block_size=_BLOCK, prefetch="off") as memory:
        words(memory)[0] = 1
        discard(memory, 3 * PAGE_SIZE, PAGE_SIZE)
        memory.evict(0, 1)
        return words(memory)[: _BLOCK // 8].copy()


def test_a_page_that_was_discarded_before_its_block_was_spilled_is_the_stores(file):
    wanted = expected(_BLOCK).copy()
    wanted[0] = 1
    assert np.array_equal(child(_spilled_in_part, file(_NBYTES)), wanted)


def _races(path: Path, mode: str, block: int, limit: int | None) -> str | None:
    """Discards of clean blocks while threads read them, and while they are evicted and flushed."""
    with paged(path, mode, block_size=block, resident_limit=limit) as memory:
        threads = [
            Worker(memory, READ, RANDOM),
            Worker(memory, READ, SEQUENTIAL),
            Worker(memory, DISCARD, RANDOM),
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 0.4
        while time.monotonic() < end or min(thread.done for thread in threads) < 20:
            memory.evict(0, memory.nbytes // 2)
            memory.flush()
            memory.prefetch(0, memory.nbytes // 4, wait=True)
        for thread in threads:
            thread.stop()
        return wrong_words(words(memory))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", sorted({PAGE_SIZE, 16 * KIB, _BLOCK, 2048 * KIB}))
@pytest.mark.parametrize("limited", [False, True], ids=["unlimited", "limit"])
def test_discards_race_with_everything(file, mode, block, limited):
    path = file(12 * block)
    assert child(_races, path, mode, block, 4 * block if limited else None, deadline=60) is None
    assert wrong_words(np.fromfile(path, np.uint64)) is None


ADVICE = {
    "MADV_COLD": lowlevel.MADV_COLD,
    "MADV_PAGEOUT": lowlevel.MADV_PAGEOUT,
    "MADV_WILLNEED": mmap.MADV_WILLNEED,
    "MADV_POPULATE_READ": 22,
    "MADV_POPULATE_WRITE": 23,
    "MADV_HUGEPAGE": mmap.MADV_HUGEPAGE,
    "MADV_MERGEABLE": mmap.MADV_MERGEABLE,
    "MADV_COLLAPSE": 25,
}


def _advised(path: Path, mode: str, advice: int) -> str | None:
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    kind = READ if mode == "r" else COUNT
    with paged(path, mode, block_size=_BLOCK, resident_limit=6 * _BLOCK) as memory:
        threads = [
            Worker(memory, kind, RANDOM, number=0, of=2, shadow=shadow),
            Worker(memory, kind, SEQUENTIAL, number=1, of=2, shadow=shadow),
            Worker(memory, ADVISE, advice=advice),
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 0.3
        while time.monotonic() < end or min(thread.done for thread in threads) < 20:
            memory.flush()
            memory.evict(0, _NBYTES // 2)
        for thread in threads:
            thread.stop()
        return wrong_words(words(memory), shadow=shadow)


@pytest.mark.needs("kernel_faults")
@pytest.mark.parametrize(
    ("mode", "name"),
    # MADV_POPULATE_WRITE is a store, which a region of mode "r" refuses (test_read_only.py).
    [(m, n) for n in ADVICE for m in MODES if (m, n) != ("r", "MADV_POPULATE_WRITE")],
)
def test_other_advice_never_changes_contents(file, mode, name):
    assert child(_advised, file(_NBYTES), mode, ADVICE[name], deadline=60) is None


@pytest.mark.needs("swap", "kernel_faults")
@pytest.mark.parametrize("mode", MODES)
def test_swapped_out_pages_of_the_region(file, mode):
    assert child(_advised, file(_NBYTES), mode, lowlevel.MADV_PAGEOUT, deadline=60) is None


def _locked(path: Path, mode: str) -> str | None:
    """A process that locks all memory it will ever map (mlockall(2)): mapping populates it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(2):
        return f"skip: mlockall: {os.strerror(ctypes.get_errno())}"
    try:
        context = paged(path, mode, block_size=_BLOCK, resident_limit=6 * _BLOCK)
        try:
            memory = context.__enter__()
        except OSError:
            return None  # refused: no zeros then, either
        wrong = wrong_words(words(memory)) or wrong_words(words(memory))
        context.__exit__(None, None, None)
        return wrong
    finally:
        libc.munlockall()


@pytest.mark.parametrize("mode", MODES)
def test_a_process_that_locks_all_its_memory(file, mode):
    found = child(_locked, file(_NBYTES), mode)
    if found and found.startswith("skip"):
        pytest.skip(found)
    assert found is None

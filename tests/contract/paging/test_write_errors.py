"""Points 2 and 3: what cannot be written stays in memory, is told, and is written when it can be.

RLIMIT_FSIZE is a store that can be broken and mended at will: writes past it fail with EFBIG.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, StoreError
from support import child
from support.disks import small_disk
from support.paging import (
    KIB,
    MIB,
    Fault,
    Struck,
    Worker,
    expected,
    load,
    make_file,
    paged,
    store,
    words,
    wrong_words,
)

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_COUNT = 16
_NBYTES = _COUNT * _BLOCK
_TIMEOUT = 0.15
_HOW = {"block_size": _BLOCK, "store_timeout": _TIMEOUT}

PASSING = {
    "EIO": [Fault("write", count=2, errno=errno.EIO)],
    "ENOSPC": [Fault("write", count=2, errno=errno.ENOSPC)],
    "short by a byte": [Fault("write", count=2, short=1)],
    "short by a page": [Fault("write", count=2, short=4096)],
    "nothing at all": [Fault("write", count=2, short=2**40)],
    "late": [Fault("write", count=2, delay=0.05)],
    "every second call": [
        Fault("write", first=call, count=1, errno=errno.EIO) for call in range(0, 300, 2)
    ],
    "a mixture": [
        Fault("write", first=0, count=1, short=5000),
        Fault("write", first=1, count=1, delay=0.05),
        Fault("write", first=2, count=2, errno=errno.EIO),
        Fault("read", first=3, count=2, short=7),
    ],
}


def broken() -> None:
    """Let every write fail from now on."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


def mended() -> None:
    """Let them succeed again."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _passing(path: Path, faults: list[Fault], by: str) -> tuple[str | None, int, int]:
    how = {**_HOW, "store_timeout": 10.0, "resident_limit": 6 * _BLOCK}
    with paged(path, "r+", faults=faults, **how) as memory:
        words(memory)[::64] += np.uint64(1)
        if by == "flush":
            memory.flush()
        elif by == "evict":
            memory.evict()
        words(memory)[::64] += np.uint64(1)
        stats = memory.stats()
    found = np.fromfile(path, np.uint64)
    found[::64] -= np.uint64(2)
    return wrong_words(found), stats.errors, stats.retries


@pytest.mark.parametrize("by", ["flush", "evict", "eviction and close"])
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_not_noticed(file, name, by):
    wrong, errors, retries = child(_passing, file(_NBYTES), PASSING[name], by)
    assert wrong is None
    assert errors == 0
    assert retries > 0 or name == "late"


def _read_beside_what_cannot_be_written(path: Path) -> int:
    """Most blocks of the limit are dirty, and the others read what is many times as much."""
    how = {"block_size": PAGE_SIZE, "store_timeout": 1.0, "writeback_interval": None}
    order = random.Random(3)
    with paged(path, "r+", resident_limit=512 * PAGE_SIZE, prefetch="off", **how) as memory:
        blocks = words(memory).reshape(-1, PAGE_SIZE // 8)
        kept = blocks[:, 7].copy()
        broken()
        changed = order.sample(range(len(blocks)), 420)
        for block in changed:
            blocks[block, 8] = 1
        for block in order.sample(range(len(blocks)), len(blocks)):
            assert blocks[block, 7] == kept[block]
        assert all(blocks[block, 8] == 1 for block in changed)
        evicted = memory.stats().evicted
        mended()
        del blocks
    return evicted


def test_reads_go_on_beside_what_cannot_be_written(file):
    assert child(_read_beside_what_cannot_be_written, file(2048 * PAGE_SIZE), deadline=120) > 1500


def _flush_fails(path: Path) -> tuple[tuple, str | None, tuple, str | None]:
    with paged(path, "r+", **_HOW) as memory:
        array = words(memory)
        array[::64] += np.uint64(1)
        broken()
        with pytest.raises(StoreError) as caught:
            memory.flush()
        error = caught.value
        told = error.store, error.operation, error.errno, error.offset % _BLOCK
        with pytest.raises(StoreError):
            memory.flush()
        stats = memory.stats()
        seen = stats.errors >= 2, stats.dirty_nbytes == _NBYTES, bool(stats.failures)
        array[::64] -= np.uint64(1)
        kept = wrong_words(array)
        array[::64] += np.uint64(1)
        mended()
        memory.flush()
        found = np.fromfile(path, np.uint64)
        found[::64] -= np.uint64(1)
        del array
        return told, kept, seen, wrong_words(found)


def test_flush_raises_loses_nothing_and_succeeds_later(file):
    path = file(_NBYTES)
    told, kept, seen, stored = child(_flush_fails, path)
    assert told == (str(path), "write", errno.EFBIG, 0)
    assert kept is None
    assert seen == (True, True, True)
    assert stored is None


def _some_fail(path: Path) -> tuple[int, list[int], str | None]:
    """Only blocks past an offset cannot be written: the others are."""
    with paged(path, "r+", **_HOW) as memory:
        words(memory)[::64] += np.uint64(1)
        broken()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * _BLOCK, hard))
        with pytest.raises(StoreError) as caught:
            memory.flush()
        first = caught.value.offset
        found = np.fromfile(path, np.uint64) - expected(_NBYTES)
        changed = [b for b in range(_COUNT) if found[b * _BLOCK // 8]]
        mended()
    found = np.fromfile(path, np.uint64)
    found[::64] -= np.uint64(1)
    return first, changed, wrong_words(found)


def test_blocks_that_can_be_written_are(file):
    first, changed, wrong = child(_some_fail, file(_NBYTES))
    assert first is not None
    assert first >= 5 * _BLOCK
    assert changed == [0, 1, 2, 3, 4]
    assert wrong is None


def _close_fails(path: Path) -> tuple[bool, str | None]:
    """The changes are still there after a close that could not store them."""
    context = paged(path, "r+", **_HOW)
    memory = context.__enter__()
    words(memory)[::64] += np.uint64(1)
    broken()
    with pytest.raises(StoreError):
        memory.close()
    open_still = not memory.closed
    mended()
    memory.close()
    found = np.fromfile(path, np.uint64)
    found[::64] -= np.uint64(1)
    return open_still, wrong_words(found)


def test_close_raises_and_can_be_tried_again(file):
    """Else what was stored would be lost with the region, and nobody could do anything."""
    assert child(_close_fails, file(_NBYTES)) == (True, None)


def _evict_fails(path: Path) -> tuple[str | None, str | None]:
    with paged(path, "r+", **_HOW) as memory:
        array = words(memory)
        array[::64] += np.uint64(1)
        broken()
        with contextlib.suppress(StoreError):
            memory.evict()
        array[::64] -= np.uint64(1)
        kept = wrong_words(array)
        array[::64] += np.uint64(1)
        mended()
        memory.evict()
        del array
    found = np.fromfile(path, np.uint64)
    found[::64] -= np.uint64(1)
    return kept, wrong_words(found)


def test_evict_keeps_what_it_cannot_write(file):
    assert child(_evict_fails, file(_NBYTES)) == (None, None)


def _full_of_dirt(path: Path, count: int) -> tuple[list[int], float, str | None, str | None]:
    """All frames are dirty and none can be written: the next block has no place.

    The thread that asks for it is struck, or waits for as long as the store is given time; what the
    frames hold is not given up.
    """
    with paged(path, "r+", resident_limit=4 * _BLOCK, **_HOW) as memory:
        array = words(memory)
        broken()
        stored: list[int] = []
        begin = time.monotonic()
        for block in range(count):
            try:
                value = int(expected(8 * (block * _BLOCK // 8 + 1))[-1]) + 1
                store(memory.address + block * _BLOCK, value.to_bytes(8, "little"))
                stored.append(block)
            except Struck:
                continue
        took = time.monotonic() - begin
        shadow = np.zeros(len(array), np.uint32)
        shadow[[block * _BLOCK // 8 for block in stored]] = 1
        held = None
        for block in stored:
            place = block * _BLOCK // 8
            held = held or wrong_words(array[place : place + 1], first=place, shadow=shadow)
        mended()
        memory.evict()  # clears what was poisoned
        wrong = held or wrong_words(array, shadow=shadow)
        del array
        with contextlib.suppress(StoreError):  # tells once of blocks that could not be had
            memory.flush()
        memory.flush()
        return stored, took, wrong, wrong_words(np.fromfile(path, np.uint64), shadow=shadow)


def test_nothing_is_given_up_when_all_frames_are_dirty_and_none_can_be_written(file):
    stored, took, wrong, in_file = child(_full_of_dirt, file(_NBYTES), 7, deadline=40)
    assert len(stored) >= 1
    assert wrong is None
    assert in_file is None
    assert took < 20


def _given_up_then_another(path: Path, times: int) -> list[str | None]:
    """A block is given up for want of a frame, and evicted; at once another takes its place."""
    late = [Fault("read", count=0, delay=0.04)]
    how = {**_HOW, "resident_limit": 4 * _BLOCK, "prefetch": "off"}
    seen = []
    with paged(path, "r+", faults=late, **how) as memory:
        while len(seen) < times:
            for block in range(4):
                place = memory.address + block * _BLOCK
                store(place, load(place))
            broken()
            # One of the four may have been written, and made room, just before.
            with contextlib.suppress(Struck):
                load(memory.address + 7 * _BLOCK)
                mended()
                continue
            mended()
            memory.evict(7 * _BLOCK, _BLOCK)
            other = 8 + len(seen)
            found = np.frombuffer(load(memory.address + other * _BLOCK, _BLOCK), np.uint64)
            seen.append(wrong_words(found, first=other * _BLOCK // 8))
        with contextlib.suppress(StoreError):  # tells once of the blocks that were given up
            memory.flush()
    return seen


def test_a_block_that_was_given_up_does_not_come_back_as_another(file):
    assert child(_given_up_then_another, file(_NBYTES), 4, deadline=60) == [None] * 4


def _writers_meanwhile(path: Path) -> tuple[str | None, str | None]:
    """The store breaks for a while under threads that write; it is given more time than that."""
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    how = {**_HOW, "store_timeout": 20.0, "resident_limit": 4 * _BLOCK}
    with paged(path, "r+", **how) as memory:
        writers = [
            Worker(memory, 1, number=number, of=2, shadow=shadow, seed=number) for number in (0, 1)
        ]
        for writer in writers:
            writer.start()
        for _ in range(3):
            time.sleep(0.05)
            broken()
            time.sleep(0.05)
            mended()
        for writer in writers:
            writer.stop()
        kept = wrong_words(words(memory), shadow=shadow)
    return kept, wrong_words(np.fromfile(path, np.uint64), shadow=shadow)


def test_writers_wait_for_a_store_that_is_fixed_in_time(file):
    assert child(_writers_meanwhile, file(_NBYTES), deadline=60) == (None, None)


def _no_space(path: Path, filler: Path) -> tuple[int, str | None, str | None]:
    with paged(path, "r+", **_HOW) as memory:
        array = words(memory)
        array[:] = expected(_NBYTES)
        with pytest.raises(StoreError) as caught:
            memory.flush()
        kept = wrong_words(array)
        filler.unlink()
        memory.flush()
        del array
    return caught.value.errno, kept, wrong_words(np.fromfile(path, np.uint64))


@pytest.mark.needs("root")
def test_a_disk_that_is_full(tmp_path):
    with small_disk(tmp_path / "disk", 2 * MIB) as disk:
        path, filler = disk / "sparse", disk / "filler"
        with path.open("wb") as file:
            file.truncate(_NBYTES)
        make_file(filler, 2 * MIB - 256 * KIB)
        code, kept, stored = child(_no_space, path, filler)
    assert code == errno.ENOSPC
    assert kept is None
    assert stored is None


def _no_space_private(path: Path, spill: Path) -> tuple[str | None, bool, str | None]:
    """Private changes are spilled into a temporary file: its disk may be full, too."""
    os.environ["TMPDIR"] = str(spill)
    tempfile.tempdir = None
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    early: list[str | None] = []
    struck = False

    def has(memory, block: int) -> str | None:
        place = block * _BLOCK // 8
        seen = np.frombuffer(load(memory.address + 8 * place), np.uint64)
        return wrong_words(seen, first=place, shadow=shadow)

    with paged(path, "c", resident_limit=4 * _BLOCK, **_HOW) as memory:
        for block in range(_COUNT):
            place = block * _BLOCK // 8
            value = int(expected(8 * (place + 1))[-1]) + 1
            try:
                store(memory.address + 8 * place, value.to_bytes(8, "little"))
                shadow[place] = 1
            except Struck:
                struck = True
        # One that was spilled may have no place to come back to; but nothing has other contents.
        for block in range(_COUNT):
            with contextlib.suppress(Struck):
                early.append(has(memory, block))
        subprocess.run(["mount", "-o", "remount,size=8M", str(spill)], check=True)
        memory.evict()
        late = wrong_words(words(memory), shadow=shadow)
    return next(filter(None, early), None), struck, late


@pytest.mark.needs("root")
def test_a_spill_file_on_a_disk_that_is_full(tmp_path, file):
    with small_disk(tmp_path / "disk", 256 * KIB) as disk:
        early, struck, late = child(_no_space_private, file(_NBYTES), disk, deadline=40)
    assert early is None
    assert struck
    assert late is None


@pytest.mark.filterwarnings("ignore")
def test_the_file_is_never_longer_than_it_was(file):
    nbytes = 3 * _BLOCK + 100
    path = file(nbytes)
    with paged(path, "r+", **_HOW) as memory:
        with memoryview(memory) as view:
            view[-1] = 0
        memory.flush()
        memory.evict()
    assert path.stat().st_size == nbytes

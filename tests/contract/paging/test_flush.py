"""Point 2: what was stored before `flush` is in the store when it returns, once and only there."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedMemory, PageState
from pagemove.introspect import states_at
from support import child, system, wait_for
from support.paging import BLOCKS, KIB, Fault, expected, make_file, paged, words, wrong_words

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_COUNT = 16
_NBYTES = _COUNT * _BLOCK
_LIMIT = 6 * _BLOCK


def in_file(path: Path, word: int) -> int:
    """Read one word of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return int.from_bytes(os.pread(fd, 8, 8 * word), "little")
    finally:
        os.close(fd)


def _again_and_again(path: Path, block: int, limit: int | None) -> list[str]:
    """One word of each block, changed before each of several flushes."""
    missing = []
    with paged(path, "r+", resident_limit=limit, block_size=block) as memory:
        array = words(memory)
        places = range(3, len(array), block // 8)
        for turn in range(1, 5):
            for place in places:
                array[place] = turn << 32 | place
            memory.flush()
            missing += [
                f"word {place} of flush {turn}"
                for place in places
                if in_file(path, place) != turn << 32 | place
            ]
        del array
    return missing


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("limited", [False, True], ids=["unlimited", "limit"])
def test_each_flush_sees_what_was_stored_since_the_last(file, block, limited):
    path = file(12 * block)
    assert child(_again_and_again, path, block, 4 * block if limited else None) == []


def _after(path: Path, before: str, block: int, page: int) -> tuple[int, int]:
    """Bring a block into a state, store one word, flush; return the word in region and file."""
    with paged(path, "r+", resident_limit=6 * block, block_size=block) as memory:
        array = words(memory)
        place = 5 * block // 8 + page * PAGE_SIZE // 8 + 9
        match before:
            case "nothing":
                pass
            case "a read":
                array[place].item()
            case "a store":
                array[place - 1] = array[place - 1].item()
            case "a flush":
                array[place] = 1
                memory.flush()
            case "an eviction":
                array[place] = 1
                memory.evict(5 * block, block)
            case "an eviction and a read":
                array[place] = 1
                memory.evict(5 * block, block)
                array[place].item()
            case "a prefetch":
                memory.prefetch(5 * block, block, wait=True)
            case "two flushes and a read":
                array[place] = 1
                memory.flush()
                array[place - 1].item()
                memory.flush()
            case "being pushed out":
                array[place] = 1
                array[:: block // 8].sum()
                array[:: block // 8].sum()
            case "being pushed out and read":
                array[place] = 1
                array[:: block // 8].sum()
                array[place].item()
        array[place] = 77
        memory.flush()
        found = array[place].item(), in_file(path, place)
        del array
        return found


STATES = [
    "nothing",
    "a read",
    "a store",
    "a flush",
    "an eviction",
    "an eviction and a read",
    "a prefetch",
    "two flushes and a read",
    "being pushed out",
    "being pushed out and read",
]


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("block", [PAGE_SIZE, 2 * PAGE_SIZE, 64 * KIB, 2048 * KIB])
def test_a_store_after_each_state_of_a_block(file, before, block):
    page = block // PAGE_SIZE - 1
    assert child(_after, file(12 * block), before, block, page) == (77, 77)


def _kernel_store(path: Path) -> str | None:
    other = path.with_suffix(".other")
    make_file(other, _NBYTES, 1)
    with paged(path, "r+", resident_limit=_LIMIT, block_size=_BLOCK) as memory:
        int(words(memory)[:: _BLOCK // 8].sum())
        memory.flush()
        with memoryview(memory) as view, other.open("rb", buffering=0) as file:
            file.readinto(view)
        memory.flush()
        return wrong_words(np.fromfile(path, np.uint64), 1)


@pytest.mark.needs("kernel_faults")
def test_stores_by_the_kernel_into_clean_blocks(file):
    assert child(_kernel_store, file(_NBYTES)) is None


def test_a_second_flush_writes_nothing(file):
    with paged(file(_NBYTES), "r+", block_size=_BLOCK) as memory:
        words(memory)[:: _BLOCK // 8] += np.uint64(1)
        memory.flush()
        written = memory.stats().bytes_written
        assert written == _NBYTES
        memory.flush()
        assert memory.stats().bytes_written == written


def test_reading_writes_nothing(file):
    path = file(_NBYTES)
    before = path.stat().st_mtime_ns
    with paged(path, "r+", resident_limit=_LIMIT, block_size=_BLOCK) as memory:
        for _ in range(2):
            int(words(memory).sum())
        memory.flush()
        memory.evict()
        assert memory.stats().bytes_written == 0
    assert path.stat().st_mtime_ns == before


def _neighbours(path: Path, how: str) -> str | None:
    """Blocks that nobody stored into stay as somebody else has made them meanwhile."""
    with paged(path, "r+", resident_limit=None, block_size=_BLOCK) as memory:
        array = words(memory)
        int(array.sum())
        changed = array.reshape(_COUNT, -1)
        changed[0::2] += np.uint64(1)
        with path.open("r+b") as file:
            for block in range(1, _COUNT, 2):
                file.seek(block * _BLOCK)
                file.write(bytes(expected(_NBYTES, 1)[block * _BLOCK // 8 :][: _BLOCK // 8]))
        {"flush": memory.flush, "evict": memory.evict, "close": lambda: None}[how]()
        del array, changed
    found = np.fromfile(path, np.uint64).reshape(_COUNT, -1)
    found[0::2] -= np.uint64(1)
    old, new = (expected(_NBYTES, tag).reshape(_COUNT, -1) for tag in (0, 1))
    if not (found[0::2] == old[0::2]).all():
        return "a changed block is not in the file"
    if not (found[1::2] == new[1::2]).all():
        return "a block that was not changed was written"
    return None


@pytest.mark.parametrize("how", ["flush", "evict", "close"])
def test_only_changed_blocks_are_written(file, how):
    assert child(_neighbours, file(_NBYTES), how) is None


def _evicted_meanwhile(path: Path) -> str | None:
    """Changed, pushed out by reads, changed again, flushed: many times, in four blocks."""
    with paged(path, "r+", resident_limit=4 * _BLOCK, block_size=_BLOCK) as memory:
        array = words(memory)
        shadow = np.zeros(len(array), np.uint32)
        rng = np.random.default_rng(3)
        for _ in range(30):
            places = rng.integers(0, len(array), 40)
            for place in places.tolist():
                array[place] += np.uint64(1)
                shadow[place] += 1
            int(array[rng.integers(0, _COUNT, 3) * (_BLOCK // 8)].sum())
            memory.flush()
            wrong = wrong_words(np.fromfile(path, np.uint64), shadow=shadow)
            if wrong:
                break
        wrong = wrong or wrong_words(array, shadow=shadow)
        del array
        return wrong


def test_flush_covers_blocks_on_their_way_out(file):
    assert child(_evicted_meanwhile, file(_NBYTES)) is None


def test_flush_of_a_closed_region_is_a_value_error(file):
    with paged(file(_NBYTES), "r+") as memory:
        pass
    for call in (memory.flush, memory.evict, memory.prefetch):
        with pytest.raises(ValueError, match="closed"):
            call()


def _sync(path: Path, faults: list[Fault]) -> list[int | None]:
    """Flush three times, changing nothing after the first: give each errno."""
    codes: list[int | None] = []
    with paged(path, "r+", faults=faults, block_size=_BLOCK, store_timeout=0.2) as memory:
        words(memory)[5] = 1
        for _ in range(3):
            try:
                memory.flush()
                codes.append(None)
            except OSError as error:
                codes.append(error.errno)
    return codes


def test_a_sync_that_fails_is_an_error_of_flush(file):
    for_ever = [Fault("flush", first=0, count=0, errno=errno.EIO)]

    def look(path: Path) -> None:
        with pytest.raises(OSError, match="durable"):
            _sync(path, for_ever)

    child(look, file(_NBYTES))


def _doubt(path: Path) -> tuple[int | None, int, int | None, int]:
    """What a failed sync leaves in doubt is written again, or stays an error."""
    fault = Fault("flush", first=0, count=1, errno=errno.EIO)
    with paged(path, "r+", faults=[fault], block_size=_BLOCK, store_timeout=0.0001) as memory:
        words(memory)[5] = 99
        first = second = None
        try:
            memory.flush()
        except OSError as error:
            first = error.errno
        # The kernel drops what it could not write, and says so once (fsync(2), EIO).
        with path.open("r+b") as file:
            file.seek(40)
            file.write(bytes(8))
        lost = in_file(path, 5)
        try:
            memory.flush()
        except OSError as error:
            second = error.errno
        return first, lost, second, in_file(path, 5)


def test_after_a_failed_sync_flush_does_not_believe_that_all_is_stored(file):
    first, lost, second, last = child(_doubt, file(_NBYTES))
    if first is None:
        pytest.skip("the sync was tried again within the call")
    assert lost == 0
    assert second is not None or last == 99


def _lost_with_evicted(path: Path, when: str) -> list[int | None]:
    """A sync fails, and what it was to make durable is not in memory any more."""
    faults = [Fault("flush", count=1, errno=errno.EIO)]
    if when == "during the sync":
        faults.append(Fault("flush", count=1, delay=0.4))
    context = paged(path, "r+", faults=faults, block_size=_BLOCK, store_timeout=0.0001)
    memory = context.__enter__()
    words(memory)[5] = 99
    codes: list[int | None] = []

    def flush() -> None:
        try:
            memory.flush()
            codes.append(None)
        except OSError as error:
            codes.append(error.errno)

    if when == "before the flush":
        memory.evict()
        flush()
    else:
        flushing = threading.Thread(target=flush)
        flushing.start()
        wait_for(lambda: memory.stats().dirty_nbytes == 0)
        memory.evict()
        flushing.join(20)
    flush()
    return codes


@pytest.mark.parametrize("when", ["before the flush", "during the sync"])
def test_what_a_failed_sync_may_have_lost_is_told_by_every_flush_after(file, when):
    """Nobody has it to write it again: that the next sync succeeds means nothing."""
    first, second = child(_lost_with_evicted, file(_NBYTES), when)
    assert first == errno.EIO
    assert second is not None


def _on_its_way(path: Path) -> tuple[int, float]:
    """Flush while an eviction is still writing what was stored before."""
    late = [Fault("write", count=0, delay=0.5)]
    with paged(path, "r+", faults=late, block_size=_BLOCK) as memory:
        words(memory)[5] = 99
        evicting = threading.Thread(target=memory.evict)
        evicting.start()
        wait_for(lambda: memory.stats().resident_nbytes and not in_region(memory))
        begin = time.monotonic()
        memory.flush()
        found = in_file(path, 5), time.monotonic() - begin
        evicting.join(20)
    return found


def in_region(memory: PagedMemory) -> bool:
    """Return whether the first block is mapped."""
    return bool(states_at(memory.address, 1)[0] & PageState.PRESENT)


def test_a_flush_waits_for_what_an_eviction_is_writing(file):
    found, took = child(_on_its_way, file(_NBYTES))
    assert found == 99
    assert took > 0.1, "the write was over before: this has shown nothing"


def _comes_back(path: Path, delay: float) -> tuple[bool, int]:
    """Flush while an eviction writes a block, and fails: the flush has passed it by."""
    # The one that fails takes a while. The next does too: not done yet if nobody waits for it.
    faults = [Fault("write", count=2, delay=delay), Fault("write", count=1, errno=errno.EIO)]
    with paged(path, "r+", faults=faults, block_size=_BLOCK, prefetch="off") as memory:
        words(memory)[3] = 77
        evicting = threading.Thread(target=memory.evict, args=[0, _BLOCK])
        evicting.start()
        wait_for(lambda: not in_region(memory))
        shown = not memory.stats().retries
        memory.flush()
        found = in_file(path, 3)
        evicting.join(60)
    return shown, found


def test_a_flush_writes_what_an_eviction_could_not(file):
    for delay in (0.5, 15.0):  # a busy machine needs longer to begin the flush
        shown, found = child(_comes_back, file(_NBYTES), delay, deadline=120)
        assert found == 77
        if shown:
            break
    assert shown


def unwritten_pages(path: Path) -> int:
    """Count the pages of a file that the device does not have yet."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return system.unwritten_pages(fd)
    finally:
        os.close(fd)


@pytest.mark.needs("cachestat")
def test_a_flush_leaves_nothing_to_the_page_cache(file):
    path = file(_NBYTES)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, os.pread(fd, 1, 0), 0)
    counted = unwritten_pages(path)
    os.fdatasync(fd)
    os.close(fd)
    if not counted or unwritten_pages(path):
        pytest.skip(f"the file system of {path.parent} is never written anywhere")
    with paged(path, "r+", block_size=_BLOCK, resident_limit=_LIMIT) as memory:
        words(memory)[:: _BLOCK // 8] += np.uint64(1)
        # Blocks that have left are written, and are not durable for that.
        assert unwritten_pages(path) > 0
        memory.flush()
        assert unwritten_pages(path) == 0
        words(memory)[:: _BLOCK // 8] += np.uint64(1)
        memory.evict()
        assert unwritten_pages(path) > 0
    assert unwritten_pages(path) == 0, "close has not flushed"

"""The kernel refuses a page half-way, for want of memory or because it is pinned or merged.

Nothing is lost, read as something else, given up while its store is sound, or counted twice.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError, lowlevel
from support import child, wait_for
from support.helpers import numbered, reined
from support.helpers import stored as in_store
from support.paging import (
    BLOCKS,
    KIB,
    MODES,
    Fault,
    expected,
    load,
    paged,
    store,
    words,
    wrong_words,
)
from support.trouble import COPY, MOVE_IN, MOVE_OUT, WAYS, refused

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_WORDS = _BLOCK // 8
_COUNT = 16
_NBYTES = _COUNT * _BLOCK
_MADV_DONTNEED = 4


def _again_and_again(path: Path, mode: str, blocks: int, how: tuple[int, int]) -> str | None:
    """Touch, store, flush and evict while every few pages are refused."""
    way, code = how
    limit = blocks * _BLOCK if blocks else None
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    with paged(path, mode, resident_limit=limit, block_size=_BLOCK, store_timeout=20.0) as memory:
        array = words(memory)
        for turn in range(3):
            with refused(way, code=code, first=5, count=2, period=37 + turn):
                for block in range(_COUNT):
                    place = block * _WORDS + 512 * turn
                    if mode != "r" and block % 3:
                        array[place] += np.uint64(1)
                        shadow[place] += 1
                    else:
                        array[place].item()
                if turn == 1:
                    memory.evict()
                memory.flush()
            found = wrong_words(array, shadow=shadow)
            if found:
                return found
        stats = memory.stats()
        assert stats.errors == 0, stats.failures
        assert not limit or stats.resident_nbytes <= limit
        memory.evict()
        assert memory.stats().resident_nbytes == 0, "frames are counted wrongly"
        del array
    kept = shadow if mode == "r+" else None
    return wrong_words(np.fromfile(path, np.uint64), shadow=kept)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EBUSY], ids=["ENOMEM", "EBUSY"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocks", [4, 40, 0], ids=["few", "many", "unlimited"])
@pytest.mark.parametrize("mode", MODES)
def test_some_pages_are_refused_now_and_then(file, mode, blocks, way, code):
    path = file(_NBYTES)
    assert child(_again_and_again, path, mode, blocks, (WAYS[way], code), deadline=60) is None


def _no_memory(path: Path, mode: str, blocks: int, first: int) -> tuple[bytes, int, float, int]:
    """A block is touched, and there is no memory for some of it for longer than `store_timeout`."""
    limit = blocks * _BLOCK if blocks else None
    with paged(
        path, mode, resident_limit=limit, block_size=_BLOCK, store_timeout=0.1, prefetch="off"
    ) as memory:
        last = memory.address + 6 * _BLOCK - 8
        found: list[bytes] = []

        def touch() -> None:
            if mode == "r":
                found.append(load(last))
            else:
                store(last, bytes(range(8)))
                found.append(load(last))

        thread = threading.Thread(target=touch)
        with refused(COPY, MOVE_IN, first=first):
            thread.start()
            time.sleep(0.5)  # not for an order: much longer than the store is given
            begin = time.process_time()
            time.sleep(0.3)
            used = time.process_time() - begin
            assert thread.is_alive()
        thread.join(20)
        assert not thread.is_alive()
        memory.evict()
        return found[0], memory.stats().errors, used, memory.stats().resident_nbytes


@pytest.mark.parametrize("first", [0, 7, 15])
@pytest.mark.parametrize("blocks", [4, 40, 0], ids=["few", "many", "unlimited"])
@pytest.mark.parametrize("mode", MODES)
def test_without_memory_a_touch_waits_and_does_not_spin(file, mode, blocks, first):
    found, errors, used, resident = child(_no_memory, file(_NBYTES), mode, blocks, first)
    place = 6 * _WORDS - 1
    here = expected(_NBYTES)[place : place + 1].tobytes()
    assert found == (here if mode == "r" else bytes(range(8)))
    assert errors == 0
    assert used < 0.15, "somebody turned in circles"
    assert resident == 0, "frames are counted wrongly"


def _cannot_come_back(path: Path, first: int) -> tuple[int, list[str | None], int]:
    """A block cannot be written, and then there is no memory to put it back where it was."""
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    shadow[: 3 * _WORDS : 100] = 1
    fault = Fault("write", count=1, errno=errno.ENOSPC)
    how = {"block_size": _BLOCK, "store_timeout": 0.1, "prefetch": "off"}
    with paged(path, "r+", faults=[fault], **how) as memory:
        array = words(memory)
        array[: 3 * _WORDS : 100] += np.uint64(1)
        with refused(MOVE_IN, COPY, first=first), pytest.raises(StoreError) as caught:
            memory.evict(0, _BLOCK)
        dirty = memory.stats().dirty_nbytes
        seen = [wrong_words(array, shadow=shadow)]
        memory.flush()
        seen.append(wrong_words(np.fromfile(path, np.uint64), shadow=shadow))
        assert memory.stats().errors == 0
        del array
    return caught.value.errno, seen, dirty


@pytest.mark.parametrize("first", [0, 3])
def test_what_can_neither_be_written_nor_put_back_is_kept(file, first):
    code, seen, dirty = child(_cannot_come_back, file(_NBYTES), first)
    assert code in (errno.ENOMEM, errno.ENOSPC)
    assert seen == [None, None]
    assert dirty == 3 * _BLOCK


def _pinned_half_way(path: Path, mode: str, code: int) -> str | None:
    """A page in the midst of a block cannot leave, and what has left cannot come back at once."""
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    with paged(path, mode, block_size=_BLOCK, store_timeout=0.1, prefetch="off") as memory:
        array = words(memory)
        array[: 2 * _WORDS].sum()
        if mode != "r":
            array[:_WORDS:50] += np.uint64(1)
            shadow[:_WORDS:50] = 1
        with (
            refused(MOVE_OUT, code=errno.EBUSY, first=8),
            refused(MOVE_IN, COPY, code=code, first=3),
            contextlib.suppress(StoreError),
        ):
            memory.evict(0, 2 * _BLOCK)
        found = wrong_words(array, shadow=shadow)
        memory.flush()
        memory.evict()
        assert memory.stats().resident_nbytes == 0, "frames are counted wrongly"
        del array
    kept = shadow if mode == "r+" else None
    return found or wrong_words(np.fromfile(path, np.uint64), shadow=kept)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EBUSY], ids=["ENOMEM", "EBUSY"])
@pytest.mark.parametrize("mode", MODES)
def test_a_block_that_leaves_and_returns_in_part(file, mode, code):
    assert child(_pinned_half_way, file(_NBYTES), mode, code) is None


def _flush(path: Path, way: int, code: int) -> tuple[bool, str | None, str | None]:
    """A flush moves blocks out and copies them back."""
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    shadow[::100] = 1
    with paged(path, "r+", block_size=_BLOCK, store_timeout=0.1, prefetch="off") as memory:
        array = words(memory)
        array[::100] += np.uint64(1)
        raised = False
        with refused(*{way, COPY}, code=code, first=20):
            try:
                memory.flush()
            except StoreError:
                raised = True
        found = wrong_words(array, shadow=shadow)
        memory.flush()
        del array
    return raised, found, wrong_words(np.fromfile(path, np.uint64), shadow=shadow)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EBUSY], ids=["ENOMEM", "EBUSY"])
@pytest.mark.parametrize("way", WAYS)
def test_a_flush_that_cannot_copy(file, way, code):
    raised, found, in_file = child(_flush, file(_NBYTES), WAYS[way], code)
    assert raised
    assert found is None
    assert in_file is None


def _patch(path: Path) -> tuple[bytes, float, int]:
    """Store into a page that is there, while another page of its block waits for the store."""
    how = {"block_size": _BLOCK, "store_timeout": 20.0, "prefetch": "off"}
    late = [Fault("read", first=1, count=0, delay=0.8)]
    with paged(path, "r+", faults=late, **how) as memory:
        load(memory.address)
        lowlevel.madvise(memory.address + _BLOCK // 2, 4096, _MADV_DONTNEED)
        before = memory.stats().faults
        reader = threading.Thread(target=load, args=(memory.address + _BLOCK // 2,))
        reader.start()
        wait_for(lambda: memory.stats().faults > before)
        begin = time.process_time(), time.monotonic()
        store(memory.address, bytes(range(8)))
        took, used = time.monotonic() - begin[1], time.process_time() - begin[0]
        assert reader.is_alive() or took > 0.8
        reader.join(20)
        memory.flush()
        dirty = memory.stats().dirty_nbytes
    assert used < 0.3, "somebody turned in circles"
    return path.read_bytes()[:8], took, dirty


def test_a_page_that_is_there_can_be_stored_into_while_others_are_fetched(file):
    stored, took, dirty = child(_patch, file(_NBYTES))
    assert stored == bytes(range(8))
    assert took < 0.5
    assert dirty == 0


def _part_cleared(path: Path, mode: str) -> tuple[str, str | None]:
    """A page that was discarded, and could then not be read, is read anew after an eviction."""
    broken = [Fault("read", first=1, count=1, errno=errno.EIO)]
    how = {"block_size": _BLOCK, "store_timeout": 0.0, "prefetch": "off"}
    with paged(path, mode, faults=broken, **how) as memory:
        load(memory.address)
        lowlevel.madvise(memory.address + 4096, 4096, _MADV_DONTNEED)
        try:
            load(memory.address + 4096)
            struck = "not struck"
        except Exception as error:
            struck = type(error).__name__
        memory.evict(0, _BLOCK)
        found = np.frombuffer(load(memory.address, _BLOCK), np.uint64)
        with contextlib.suppress(StoreError):  # tells once of the block that could not be read
            memory.flush()
        return struck, wrong_words(found)


@pytest.mark.parametrize("mode", MODES)
def test_evict_clears_the_poison_of_a_block_that_was_discarded_in_part(file, mode):
    assert child(_part_cleared, file(_NBYTES), mode) == ("Struck", None)


@pytest.mark.parametrize("block", BLOCKS[:3])
def test_a_block_that_was_never_read_is_not_dirty(tmp_path, block):
    assert child(_never_read, tmp_path, block) == (True, 0, 0)


def _never_read(folder: Path, block: int) -> tuple[bool, int, int]:
    """A store into a block that cannot be read: there is nothing to be written back."""
    contents = numbered(8 * block)
    with reined(folder, contents) as source, _region(source, block) as memory:
        source.reins.failing = errno.EIO
        struck = False
        try:
            store(memory.address, bytes(8))
        except Exception:
            struck = True
        source.reins.failing = 0
        stats = memory.stats()
        with contextlib.suppress(StoreError):  # tells once of the block that could not be read
            memory.flush()
        assert (in_store(source) == contents).all()
        return struck, stats.dirty_nbytes, stats.resident_nbytes


def _region(source, block: int) -> PagedMemory:
    return PagedMemory(source, mode="r+", block_size=block, store_timeout=0.05, prefetch="off")


def _never_moves(path: Path, mode: str, blocks: int) -> tuple[str | None, str | None, int]:
    """No page ever moves into the region, as if all were pinned in their slots."""
    limit = blocks * _BLOCK if blocks else None
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    with paged(path, mode, resident_limit=limit, block_size=_BLOCK, store_timeout=0.2) as memory:
        array = words(memory)
        with refused(MOVE_IN, code=errno.EBUSY):
            if mode != "r":
                array[::_WORDS] += np.uint64(1)
                shadow[::_WORDS] += 1
            found = wrong_words(array, shadow=shadow)
            memory.flush()
            memory.evict()
        errors = memory.stats().errors
        del array
    kept = shadow if mode == "r+" else None
    return found, wrong_words(np.fromfile(path, np.uint64), shadow=kept), errors


@pytest.mark.parametrize("blocks", [4, 40, 0], ids=["few", "many", "unlimited"])
@pytest.mark.parametrize("mode", MODES)
def test_what_cannot_move_is_copied(file, mode, blocks):
    assert child(_never_moves, file(_NBYTES), mode, blocks) == (None, None, 0)

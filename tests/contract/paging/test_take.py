"""`take` and `prefetch` by index: what numpy.take gives, and all blocks read together."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove import PAGE_SIZE, PagedArray, PagedMemory, StoreError
from pagemove.stores import FileStore
from support import child
from support.interruptions import PROMPT, interrupted
from support.late_stores import unruly
from support.paging import (
    MODES,
    VERSION,
    Fault,
    Worker,
    expected,
    make_file,
    paged,
    shared_zeros,
    words,
)
from support.threads import together, wait_for

pytestmark = pytest.mark.needs("paging")

_BLOCK = PAGE_SIZE
_ROW = _BLOCK // 8
_ROWS = 300

Table = npt.NDArray[np.uint64]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_file(tmp_path / "file", _ROWS * _BLOCK)


@contextlib.contextmanager
def _table(path: Path, mode: str = "r", blocks: int | None = None, **how: Any) -> Iterator[Any]:
    """The rows of a file, a block each, in a region; at the end nothing of it may be left."""
    limit = {"resident_limit": blocks * _BLOCK} if blocks else {}
    with paged(path, mode, **limit, block_size=_BLOCK, prefetch="off", **how) as memory:
        yield memory


def _rows(memory: PagedMemory) -> Table:
    return words(memory).reshape(_ROWS, _ROW)


def _file() -> Table:
    return expected(_ROWS * _BLOCK).reshape(_ROWS, _ROW)


_SCATTERED = np.random.default_rng(5).integers(-_ROWS, _ROWS, 500)


class TestAsNumpy:
    """What Hypothesis would not come upon: ``tests/property/paging/test_take.py`` has the rest."""

    def test_not_paged(self):
        numbers = np.arange(12).reshape(3, 4)
        for array in (numbers, numbers.tolist(), np.ma.array(numbers)):
            found = pagemove.take(array, [2, 0], 1)
            wanted = np.take(array, [2, 0], 1)
            assert type(found) is type(wanted)
            assert (found == wanted).all()
        with pytest.raises(IndexError, match="index 3 is out of bounds for axis 0 with size 3"):
            pagemove.take(numbers, [3])

    def test_rows_by_default_and_items_of_the_method(self, path):
        with _table(path) as memory:
            array = _rows(memory).view(PagedArray)
            assert (pagemove.take(array, [3, -1]) == _file()[[3, -1]]).all()
            assert (array.take([3, -1]) == _file().take([3, -1])).all()
            assert (np.take(array, [3, -1]) == _file().take([3, -1])).all()
            assert type(array.take([3])) is type(np.take(array, [3], 0)) is np.ndarray
            del array

    def test_of_classes_of_ones_own(self, path):
        class Mine(PagedArray):
            named = "mine"

        with _table(path) as memory:
            array = _rows(memory).view(Mine)
            found = pagemove.take(array, _SCATTERED)
            assert type(found) is type(array.take([1], 0)) is Mine
            assert (found == _file()[_SCATTERED]).all()
            masked = np.ma.masked_equal(_rows(memory), _file()[7, 0])
            row = pagemove.take(masked, [7])
            assert row.mask[0].tolist() == [True] + [False] * (_ROW - 1)
            del array, masked

    def test_of_the_region_itself(self, path):
        with _table(path) as memory:
            whole = np.frombuffer(_file(), np.uint8)
            places = [0, 5000, -1]
            assert pagemove.take(memory, places).tolist() == whole[places].tolist()

    def test_nothing_is_read_where_an_argument_is_wrong(self, path):
        with _table(path) as memory:
            rows = _rows(memory)
            with pytest.raises(IndexError, match="index 300 is out of bounds for axis 0"):
                pagemove.take(rows, [1, 300, 2])
            with pytest.raises(IndexError, match="index -301 is out of bounds"):
                pagemove.prefetch(rows, [1, -301])
            with pytest.raises(ValueError, match="output array does not match"):
                pagemove.take(rows, [1], out=np.empty((2, _ROW), np.uint64))
            with pytest.raises(TypeError, match="Cannot cast"):
                pagemove.take(rows, np.array([1.0]))
            assert memory.stats().bytes_read == 0
            del rows


class TestBlocks:
    """Which blocks are read, and how often."""

    @pytest.mark.parametrize("mode", MODES)
    def test_each_once_and_without_a_fault(self, path, mode):
        with _table(path, mode) as memory:
            rows = _rows(memory)
            assert (pagemove.take(rows, _SCATTERED) == _file()[_SCATTERED]).all()
            blocks = len(np.unique(_SCATTERED % _ROWS))
            first = memory.stats()
            assert (first.faults, first.prefetched) == (0, blocks)
            assert first.bytes_read == blocks * _BLOCK
            again = pagemove.take(rows, _SCATTERED[::-1])
            assert (again == _file()[_SCATTERED[::-1]]).all()
            assert memory.stats().bytes_read == first.bytes_read
            del rows

    @pytest.mark.parametrize("blocks", [4, 9, 40, 200])
    def test_within_the_limit(self, path, blocks):
        with _table(path, blocks=blocks) as memory:
            rows = _rows(memory)
            out = np.empty((len(_SCATTERED), _ROW), np.uint64)
            assert pagemove.take(rows, _SCATTERED, out=out) is out
            assert (out == _file()[_SCATTERED]).all()
            stats = memory.stats()
            assert stats.resident_nbytes <= blocks * _BLOCK
            # Sorted: a block comes twice only if it has left between being read and being copied.
            distinct = len(np.unique(_SCATTERED % _ROWS))
            assert distinct <= stats.bytes_read // _BLOCK <= distinct + distinct // 8 + 2
            del rows

    def test_rows_of_many_blocks_and_larger_than_the_limit(self, path):
        with _table(path, blocks=8) as memory:
            for shape in ((30, -1), (3, -1), (5, 4, -1)):
                array, same = words(memory).reshape(shape), _file().reshape(shape)
                for axis in range(len(shape)):
                    picked = [0, -1, 1, 1]
                    found = pagemove.take(array, picked, axis)
                    assert (found == np.take(same, picked, axis)).all()
                assert (pagemove.take(array.T, [2, 0], 0) == np.take(same.T, [2, 0], 0)).all()
                del array

    def test_the_same_row_very_often(self, path):
        with _table(path, blocks=4) as memory:
            array = words(memory)[: 100 * 3 * _ROW].reshape(-1, 3 * _ROW)
            found = pagemove.take(array, np.full(3000, 50))
            assert (found == _file().reshape(-1, 3 * _ROW)[50]).all()
            del array, found

    def test_a_strided_view_is_not_copied_whole(self, path):
        with _table(path) as memory:
            view = _rows(memory)[:, ::2]
            assert (pagemove.take(view, [8, 2]) == _file()[[8, 2], ::2]).all()
            flat = view.view(PagedArray).take([8 * _ROW // 2, 3])
            assert (flat == _file()[:, ::2].take([8 * _ROW // 2, 3])).all()
            assert memory.stats().bytes_read == 3 * _BLOCK
            del view

    @pytest.mark.parametrize("blocks", [None, 6])
    def test_compressed_memory(self, blocks):
        limit = blocks and blocks * _BLOCK
        with PagedMemory(nbytes=_ROWS * _BLOCK, resident_limit=limit, block_size=_BLOCK) as memory:
            rows = _rows(memory)
            rows[...] = _file()
            assert (pagemove.take(rows, _SCATTERED) == _file()[_SCATTERED]).all()
            memory.evict()
            assert (pagemove.take(rows, _SCATTERED) == _file()[_SCATTERED]).all()
            del rows

    @pytest.mark.parametrize("mode", ["r+", "c"])
    @pytest.mark.parametrize("blocks", [5, 50])
    def test_changed_blocks(self, path, mode, blocks):
        """Those that are resident, those that wait to be written, and those that have left."""
        with _table(path, mode, blocks) as memory:
            rows = _rows(memory)
            changed = _file().copy()
            changed[::3] += np.uint64(1)
            for row in range(0, _ROWS, 3):
                rows[row] += np.uint64(1)
            for _ in range(2):
                assert (pagemove.take(rows, _SCATTERED) == changed[_SCATTERED]).all()
            del rows


class TestPrefetch:
    def test_rows(self, path):
        with _table(path) as memory:
            rows = _rows(memory)
            pagemove.prefetch(rows, [[7, -1], [7, 100]], wait=True)
            assert memory.stats().prefetched == 3
            assert (rows[[7, -1, 100]] == _file()[[7, -1, 100]]).all()
            assert memory.stats().faults == 0
            rows.view(PagedArray).prefetch([8, 9], wait=True)
            pagemove.prefetch(rows, [])
            assert memory.stats().prefetched == 5
            del rows

    def test_views(self, path):
        with _table(path) as memory:
            rows = _rows(memory)
            pagemove.prefetch(rows[::50, ::-3], wait=True)
            assert memory.stats().prefetched == 6
            memory.prefetch(rows[1:10:4], wait=True)
            assert memory.stats().prefetched == 9
            pagemove.prefetch(memoryview(memory)[210 * _BLOCK : 212 * _BLOCK], wait=True)
            assert memory.stats().prefetched == 11
            pagemove.prefetch(memory, wait=True)
            assert memory.stats().prefetched == _ROWS
            del rows

    def test_offsets(self, path):
        with _table(path) as memory:
            memory.prefetch(np.array([5 * _BLOCK + 1, 9 * _BLOCK]), wait=True)
            assert memory.stats().prefetched == 2
            memory.prefetch([20 * _BLOCK, 30 * _BLOCK - 1], _BLOCK + 1, wait=True)
            assert memory.stats().prefetched == 6
            for wrong in ([-1], [_ROWS * _BLOCK]):
                with pytest.raises(ValueError, match="are not within"):
                    memory.prefetch(wrong)
            with pytest.raises(TypeError, match="offsets"):
                memory.prefetch(np.array([0.5]))
            assert memory.stats().prefetched == 6

    def test_without_waiting(self, path):
        with _table(path) as memory:
            rows = _rows(memory)
            pagemove.prefetch(rows, np.arange(0, _ROWS, 3))
            wait_for(lambda: memory.stats().prefetched == _ROWS // 3)
            assert (rows[::3] == _file()[::3]).all()
            assert memory.stats().faults == 0
            del rows

    def test_no_more_than_there_is_room_for(self, path):
        with _table(path, blocks=40) as memory:
            rows = _rows(memory)
            pagemove.prefetch(rows, np.arange(0, _ROWS, 2), wait=True)
            assert memory.stats().prefetched == 30
            assert (rows[:60:2] == _file()[:60:2]).all()
            assert memory.stats().faults == 0
            del rows

    def test_not_paged(self):
        numbers = np.arange(6)
        pagemove.prefetch(numbers, wait=True)
        pagemove.prefetch(numbers, [5])
        with pytest.raises(IndexError):
            pagemove.prefetch(numbers, [6])
        with pytest.raises(TypeError, match="cannot prefetch int: it has no buffer"):
            pagemove.prefetch(5)


class TestFailures:
    def _failed(self, path: Path) -> dict[str, Any]:
        broken = [Fault("read", first=60, count=0, errno=errno.EIO)]
        with _table(path, faults=broken, store_timeout=0.1) as memory:
            rows = _rows(memory)
            with pytest.raises(StoreError) as raised:
                pagemove.take(rows, np.arange(0, 200, 2))
            with pytest.raises(StoreError):
                pagemove.prefetch(rows, np.arange(0, 200, 2), wait=True)
            offset = raised.value.offset
            there = (rows[:20:2] == _file()[:20:2]).all() if offset > 20 * _BLOCK else True
            del rows, raised
            return {"block": offset % (2 * _BLOCK), "errno": errno.EIO, "there": bool(there)}

    def test_a_block_that_cannot_be_read(self, path):
        """An exception that names it, in time for one block, not for all; and no signal."""
        assert child(self._failed, path) == {"block": 0, "errno": errno.EIO, "there": True}

    def _failed_between(self, folder: Path) -> dict[str, Any]:
        (folder / "cut").write_bytes(bytes(100 * _BLOCK))
        store = FileStore(folder / "cut")
        with PagedMemory(store, block_size=_BLOCK, store_timeout=0.05, prefetch="off") as memory:
            os.truncate(folder / "cut", 40 * _BLOCK)
            for number in (50, 90):
                with pytest.raises(StoreError):
                    memory.prefetch(number * _BLOCK, _BLOCK, wait=True)
            rows = np.frombuffer(memory, np.uint64).reshape(100, _ROW)
            with pytest.raises(StoreError) as raised:
                pagemove.take(rows, [10, 90, 95])
            found = {
                "offset": raised.value.offset,
                "notes": getattr(raised.value, "__notes__", []),
            }
            del rows, raised
            return found

    def test_one_that_was_not_asked_for_is_not_named(self, tmp_path):
        found = child(self._failed_between, tmp_path)
        assert found == {"offset": 90 * _BLOCK, "notes": []}

    def test_what_passes_is_not_noticed(self, path):
        faults = [Fault("read", first=call, count=1, errno=errno.EIO) for call in range(0, 90, 3)]
        faults += [Fault("read", first=1, count=20, short=7)]
        with _table(path, faults=faults, store_timeout=20) as memory:
            rows = _rows(memory)
            assert (pagemove.take(rows, _SCATTERED) == _file()[_SCATTERED]).all()
            assert memory.stats().retries > 20
            assert memory.stats().errors == 0
            del rows

    def _interrupted(self, folder: Path) -> dict[str, Any]:
        store = unruly(folder, _file().ravel().copy())
        with PagedMemory(store, block_size=_BLOCK, store_timeout=60, prefetch="off") as memory:
            rows = _rows(memory)
            wanted = np.arange(0, _ROWS, 2)
            store.knobs.hold_reads = 100 * _BLOCK + 1
            ended, took = interrupted(
                partial(pagemove.take, rows, wanted), lambda: store.knobs.held
            )
            store.knobs.hold_reads = 0
            whole = (pagemove.take(rows, wanted) == _file()[wanted]).all()
            del rows
            return {"ended": ended, "prompt": took < PROMPT, "whole": bool(whole)}

    @pytest.mark.needs("fork")
    def test_control_c(self, tmp_path):
        found = child(self._interrupted, tmp_path, deadline=40)
        assert found == {"ended": True, "prompt": True, "whole": True}

    def _closed(self, folder: Path) -> int:
        store = unruly(folder, _file().ravel().copy())
        with PagedMemory(store, block_size=_BLOCK, store_timeout=60, prefetch="off") as memory:
            store.knobs.hold_reads = 100 * _BLOCK + 1
            for _ in range(20):
                memory.prefetch(np.arange(0, _ROWS, 2) * _BLOCK)
            wait_for(lambda: store.knobs.held)
            memory.flush()
        return 0

    @pytest.mark.needs("fork")
    def test_closed_while_blocks_are_read(self, tmp_path):
        """What nobody waits for neither keeps other calls waiting nor the end."""
        assert child(self._closed, tmp_path, deadline=40) == 0


class TestAtOnce:
    @pytest.mark.parametrize("blocks", [4, 30, None])
    def test_threads(self, path, blocks):
        with _table(path, blocks=blocks) as memory:
            rows = _rows(memory)

            def some(seed: int, rows: Table) -> bool:
                random = np.random.default_rng(seed)
                for _ in range(5):
                    picked = random.integers(0, _ROWS, 100)
                    if not (pagemove.take(rows, picked) == _file()[picked]).all():
                        return False
                return True

            assert together(*(partial(some, seed, rows) for seed in range(4))) == [True] * 4
            del rows

    @pytest.mark.parametrize("mode", ["r+", "c"])
    @pytest.mark.parametrize("blocks", [6, 60])
    def test_beside_writers(self, path, mode, blocks):
        """No word is older than when `take` was called, none newer than when it returned.

        A row is copied word by word, so a writer may overtake the copy: the words of a row need not
        be of one moment.
        """
        with _table(path, mode, blocks) as memory:
            rows = _rows(memory)
            shadow = shared_zeros(_ROWS)
            writers = [
                Worker(memory, VERSION, shadow=shadow, number=number, of=2, seed=number).start()
                for number in range(2)
            ]
            random = np.random.default_rng(0)
            for _ in range(15):
                picked = random.integers(0, _ROWS, 80)
                oldest = shadow[picked].astype(np.int64)[:, np.newaxis]
                versions = (pagemove.take(rows, picked) - _file()[picked]).astype(np.int64)
                # What is being written is one ahead of what the writer says is done.
                newest = shadow[picked].astype(np.int64)[:, np.newaxis] + 1
                assert (oldest <= versions).all()
                assert (versions <= newest).all()
            for writer in writers:
                writer.stop()
            assert (pagemove.take(rows, range(_ROWS))[:, 0] == _file()[:, 0] + shadow).all()
            del rows

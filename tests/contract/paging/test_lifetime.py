"""Point 7: the region owns its mapping, and views keep it alive; what is left when it is closed."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pagemove
from pagemove import PagedMemory
from pagemove.paging import closing
from pagemove.stores import FileStore
from support import child, vmas_in, wait_for
from support.paging import (
    KIB,
    MODES,
    contents,
    expected,
    make_file,
    paged,
    words,
    wrong_words,
)
from support.selection import few
from support.threads import passing_threads

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_NBYTES = 8 * _BLOCK


def opened(path: Path, mode: str = "r", **how) -> tuple[PagedMemory, FileStore]:
    store = FileStore(path, writable=mode == "r+")
    return PagedMemory(store, mode=mode, block_size=_BLOCK, **how), store


TAKE = {
    "memoryview": memoryview,
    "array": words,
    "a view of the array": lambda memory: words(memory)[3:-3:2],
    "frombuffer": lambda memory: np.frombuffer(memory, np.uint8),
    "another shape": lambda memory: memory.asarray(np.uint8, (4, -1 % 7), 5),
    "a slice of the memoryview": lambda memory: memoryview(memory)[10:20],
}


class TestClose:
    def test_unmaps(self, file):
        memory, store = opened(file(_NBYTES))
        address, nbytes = memory.address, memory.nbytes
        contents(memory)
        memory.close()
        assert memory.closed
        assert not vmas_in(address, nbytes)
        store.close()

    def test_twice_is_fine(self, file):
        memory, store = opened(file(_NBYTES))
        memory.close()
        with paged(file(_NBYTES, 1)) as other:
            memory.close()
            assert wrong_words(words(other), 1) is None
        store.close()

    @pytest.mark.parametrize("take", TAKE)
    @pytest.mark.parametrize("mode", MODES)
    def test_while_views_exist_is_a_buffer_error(self, file, take, mode):
        path = file(_NBYTES)
        memory, store = opened(path, mode)
        if mode != "r":
            words(memory)[0] += np.uint64(1)
        view = TAKE[take](memory)
        with pytest.raises(BufferError, match="close"):
            memory.close()
        assert not memory.closed
        bytes(view)
        if mode != "r":
            words(memory)[0] -= np.uint64(1)
        del view
        memory.close()
        assert memory.closed
        store.close()
        assert path.read_bytes() == bytes(expected(_NBYTES))

    def test_leaving_the_block_with_a_view_is_a_buffer_error(self, file):
        path = file(_NBYTES)
        memory, store = opened(path, "r+")
        array = words(memory)
        array[::64] += np.uint64(1)
        with pytest.raises(BufferError), memory:
            array[0] += np.uint64(0)
        array[::64] -= np.uint64(1)
        assert wrong_words(array) is None
        del array
        memory.close()
        store.close()

    def test_everything_else_is_a_value_error_then(self, file):
        memory, store = opened(file(_NBYTES))
        memory.close()
        for use in (
            memoryview,
            bytes,
            words,
            lambda m: m.address,
            lambda m: m.flush(),
            lambda m: m.evict(),
            lambda m: m.prefetch(),
            lambda m: m.prefetch(wait=True),
            lambda m: m.evict(0, 1),
        ):
            with pytest.raises(ValueError, match="closed"):
                use(memory)
        assert "closed" in repr(memory)
        store.close()

    def test_the_store_may_be_closed_before(self, file):
        path = file(_NBYTES)
        store = FileStore(path, writable=True)
        with PagedMemory(store, mode="r+", block_size=_BLOCK) as memory:
            store.close()
            words(memory)[::64] += np.uint64(1)
            memory.flush()
            words(memory)[::64] -= np.uint64(1)
        assert wrong_words(np.fromfile(path, np.uint64)) is None

    def test_the_file_may_be_gone_before(self, file):
        path = file(_NBYTES)
        with paged(path, "r+", block_size=_BLOCK, resident_limit=4 * _BLOCK) as memory:
            path.unlink()
            words(memory)[::64] += np.uint64(1)
            words(memory)[::64] -= np.uint64(1)
            assert wrong_words(words(memory)) is None

    def test_a_file_that_replaces_it_is_not_touched(self, file, tmp_path):
        path = file(_NBYTES)
        with paged(path, "r+", block_size=_BLOCK, resident_limit=4 * _BLOCK) as memory:
            words(memory)[:] = 0
            os.replace(make_file(tmp_path / "other", _NBYTES, 1), path)
        assert wrong_words(np.fromfile(path, np.uint64), 1) is None

    def test_flushes(self, file):
        path = file(_NBYTES)
        memory, store = opened(path, "r+")
        words(memory)[::64] += np.uint64(1)
        memory.close()
        store.close()
        found = np.fromfile(path, np.uint64)
        found[::64] -= np.uint64(1)
        assert wrong_words(found) is None


class TestViews:
    @pytest.mark.parametrize("mode", MODES)
    def test_keep_the_region_alive(self, file, mode):
        memory, store = opened(file(_NBYTES), mode, resident_limit=4 * _BLOCK)
        address = memory.address
        view = words(memory)[::-1][::2]
        del memory
        gc.collect()
        assert (view == expected(_NBYTES)[::-1][::2]).all()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del view
            gc.collect()
        assert not vmas_in(address, 1)
        store.close()

    def test_of_a_thread_that_still_uses_them(self, file):
        memory, store = opened(file(_NBYTES), "r", resident_limit=4 * _BLOCK)
        begun, stop, found = threading.Event(), threading.Event(), []

        def use(array):
            while not stop.is_set():
                found.append(int(array.sum()))
                begun.set()

        thread = threading.Thread(target=use, args=(words(memory),))
        thread.start()
        assert begun.wait(20)
        with pytest.raises(BufferError):
            memory.close()
        stop.set()
        thread.join(20)
        assert set(found) == {int(expected(_NBYTES).sum())}
        del thread, use
        gc.collect()
        memory.close()
        store.close()

    def test_an_array_of_open_array_is_the_last_owner(self, file):
        path = file(_NBYTES)
        array = pagemove.open_array(path, dtype=np.uint64, mode="r+", block_size=_BLOCK)
        address = array.ctypes.data
        array[::64] += np.uint64(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del array
            gc.collect()
        assert not vmas_in(address, 1)
        found = np.fromfile(path, np.uint64)
        found[::64] -= np.uint64(1)
        assert wrong_words(found) is None


class TestForgotten:
    def test_is_a_resource_warning_and_flushed(self, file):
        path = file(_NBYTES)
        memory, store = opened(path, "r+")
        words(memory)[::64] += np.uint64(1)
        holder = [memory]
        del memory
        with pytest.warns(ResourceWarning):
            _forget(holder)
        store.close()
        found = np.fromfile(path, np.uint64)
        found[::64] -= np.uint64(1)
        assert wrong_words(found) is None

    def test_in_a_cycle(self, file):
        path = file(_NBYTES)
        memory, store = opened(path, "r+")
        words(memory)[::64] += np.uint64(1)
        cycle = [memory]
        cycle.append(cycle)
        holder = [cycle]
        del memory, cycle
        with pytest.warns(ResourceWarning):
            _forget(holder)
        store.close()
        found = np.fromfile(path, np.uint64)
        found[::64] -= np.uint64(1)
        assert wrong_words(found) is None


def _forget(holder: list[object]) -> None:
    holder.clear()
    gc.collect()


class TestOneOwner:
    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_cannot_be_copied_or_pickled(self, file, duplicate):
        with paged(file(_NBYTES)) as memory, pytest.raises(TypeError):
            duplicate(memory)

    def test_cannot_be_initialised_twice(self, file):
        with paged(file(_NBYTES)) as memory:
            with (
                FileStore(file(_NBYTES, 1)) as store,
                pytest.raises((ValueError, TypeError, RuntimeError)),
            ):
                memory.__init__(store)
            assert wrong_words(words(memory)) is None

    def test_its_address_and_length_cannot_be_set(self, file):
        with paged(file(_NBYTES)) as memory:
            for name in ("address", "nbytes", "closed", "block_size"):
                with pytest.raises(AttributeError):
                    setattr(memory, name, 0)

    def test_an_object_without_a_region(self):
        bare = PagedMemory.__new__(PagedMemory)
        with pytest.raises((ValueError, AttributeError)):
            memoryview(bare)
        del bare
        gc.collect()


class TestRanges:
    @pytest.mark.parametrize(
        ("offset", "length"), [(-1, 1), (_NBYTES + 1, 0), (0, _NBYTES + 1), (0, -1), (2**63, 1)]
    )
    def test_outside_are_refused(self, file, offset, length):
        with paged(file(_NBYTES)) as memory:
            for call in (memory.prefetch, memory.evict):
                with pytest.raises((ValueError, OverflowError)):
                    call(offset, length)

    @pytest.mark.parametrize(("offset", "length"), [(0, 0), (_NBYTES, 0), (5, 1), (_NBYTES - 1, 1)])
    def test_odd_ones_are_taken(self, file, offset, length):
        with paged(file(_NBYTES), block_size=_BLOCK) as memory:
            memory.prefetch(offset, length, wait=True)
            memory.evict(offset, length)
            assert memory.stats().bytes_read == (_BLOCK if length else 0)
            assert wrong_words(words(memory)) is None

    def test_evict_takes_every_block_that_touches_the_range(self, file):
        with paged(file(_NBYTES), block_size=_BLOCK, prefetch="off") as memory:
            contents(memory)
            memory.evict(_BLOCK - 1, _BLOCK + 2)
            assert memory.stats().resident_nbytes == _NBYTES - 3 * _BLOCK

    def test_a_prefetch_reads_once(self, file):
        with paged(file(_NBYTES), block_size=_BLOCK) as memory:
            memory.prefetch(wait=True)
            memory.prefetch(wait=True)
            assert wrong_words(words(memory)) is None
            stats = memory.stats()
            assert stats.bytes_read == _NBYTES
            assert stats.prefetched == 8


def _left(path: Path, mode: str) -> list[list[str]]:
    """Return threads and descriptors before and after regions have come and gone."""
    before = passing_threads(), sorted(os.listdir("/proc/self/fd"))
    for _ in range(few(10, 4)):
        with paged(path, mode, block_size=_BLOCK, resident_limit=4 * _BLOCK) as memory:
            contents(memory)
            if mode != "r":
                words(memory)[::64] += np.uint64(1)
    wait_for(lambda: len(passing_threads()) == len(before[0]))
    return [*before, passing_threads(), sorted(os.listdir("/proc/self/fd"))]


@pytest.mark.parametrize("mode", MODES)
def test_threads_and_descriptors_are_gone_after_close(file, mode):
    threads, fds, threads_after, fds_after = child(_left, file(_NBYTES), mode)
    assert threads_after == threads
    assert fds_after == fds


def test_what_is_changed_while_close_waits_is_saved(tmp_path, monkeypatch):
    """By a thread whose call has just returned."""
    path = make_file(tmp_path / "file", _NBYTES)
    memory, store = opened(path, "r+")
    store.close()
    called, slept = [True, True, False], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        memory.asarray(np.uint64)[len(slept)] = 42

    monkeypatch.setattr(PagedMemory, "_is_called", property(lambda _: called.pop(0)))
    monkeypatch.setattr(closing, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    memory.close()
    assert memory.closed
    assert np.fromfile(path, np.uint64, 3)[1:].tolist() == [42, 42]
    assert len(slept) == 2

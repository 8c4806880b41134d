"""What is pinned stays, so that system calls work whose faults nobody serves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import socket
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import PagedMemory, StoreError, pinned
from support import child, living_child
from support.paging import (
    MODES,
    Fault,
    contents_of,
    expected,
    load,
    store,
    words,
)
from support.pinning import (
    BLOCK,
    BLOCKS,
    LIMIT,
    MOST,
    NBYTES,
    blocks_pinned,
    ordinary,  # noqa: F401 (a fixture)
    region,
)

pytestmark = pytest.mark.needs("paging")


def _in_a_helper(out: int) -> bool:
    with PagedMemory(nbytes=NBYTES, resident_limit=LIMIT, block_size=4096) as memory:
        assert not memory.kernel_faults
        with memoryview(memory) as view, pinned(view[: NBYTES // 4]) as part:
            os.pwrite(out, contents_of(len(part)), 0)
            assert os.preadv(out, [part], 0) == len(part)
            part.release()
        memory.evict()
        return load(memory.address, NBYTES // 4) == contents_of(NBYTES // 4)


class TestSystemCalls:
    @pytest.mark.parametrize("mode", MODES)
    def test_read_what_is_pinned(self, file, out, mode):
        path = file(NBYTES)
        with region(path, mode) as memory, memoryview(memory) as view:
            part = view[BLOCK + 100 : 9 * BLOCK - 8]
            with pytest.raises(OSError, match="Bad address") as caught:
                os.pwrite(out, part, 0)
            assert caught.value.errno == errno.EFAULT
            with pinned(part) as same:
                assert same is part
                assert os.pwrite(out, part, 0) == len(part)
            assert os.pread(out, len(part), 0) == contents_of(NBYTES)[BLOCK + 100 : 9 * BLOCK - 8]
            part.release()

    @pytest.mark.parametrize("mode", ["r+", "c"])
    @pytest.mark.parametrize("touched", ["no", "read", "written"])
    def test_write_into_it(self, file, out, mode, touched):
        path = file(NBYTES)
        data = contents_of(8 * BLOCK, 1)
        os.pwrite(out, data, 0)
        with region(path, mode) as memory, memoryview(memory) as view:
            if touched == "read":
                load(memory.address, 8 * BLOCK)
            elif touched == "written":
                store(memory.address, bytes(8 * BLOCK))
            part = view[: 8 * BLOCK]
            with pinned(part):
                assert os.preadv(out, [part], 0) == len(part)
            # It leaves, and comes back.
            memory.evict()
            assert load(memory.address, len(part)) == data
            part.release()
        in_file = path.read_bytes()[: 8 * BLOCK]
        assert in_file == (data if mode == "r+" else contents_of(8 * BLOCK))

    def test_sockets(self, file):
        one, other = socket.socketpair()
        with one, other, region(file(NBYTES), "c") as memory, memoryview(memory) as view:
            part = view[3 * BLOCK : 3 * BLOCK + 5000]
            with pytest.raises(OSError, match="Bad address"):
                one.send(part)
            with pinned(part):
                one.sendall(part)
                with pinned(view[8 * BLOCK : 8 * BLOCK + 5000]) as there:
                    assert other.recv_into(there, 0, socket.MSG_WAITALL) == 5000
                    assert there == part
                    there.release()
            part.release()

    def test_what_numpy_and_pickle_write(self, file, tmp_path):
        with region(file(NBYTES)) as memory:
            array = memory.asarray(np.uint64)[: MOST * BLOCK // 8]
            assert type(array) is np.ndarray
            with pytest.raises(OSError, match="requested and"):
                array.tofile(tmp_path / "raw")
            memory.evict()
            with (tmp_path / "pickle").open("wb") as to, pytest.raises(OSError, match="Bad addr"):
                pickle.dump(array, to, protocol=5)
            memory.evict()
            with pinned(array):
                array.tofile(tmp_path / "raw")
                np.save(tmp_path / "saved.npy", array)
                with (tmp_path / "pickle").open("wb") as to:
                    pickle.dump(array, to, protocol=5)
            del array
        wanted = expected(MOST * BLOCK)
        assert (np.fromfile(tmp_path / "raw", np.uint64) == wanted).all()
        assert (np.load(tmp_path / "saved.npy") == wanted).all()
        assert (pickle.loads((tmp_path / "pickle").read_bytes()) == wanted).all()

    @pytest.mark.needs("fork", "zstandard")
    def test_a_store_in_a_helper(self, out):
        assert child(_in_a_helper, out)


class _Tensor:
    """Has what those of PyTorch have: DLPack, and an ``__array__`` that does not know `copy`."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        # Those of PyTorch are writable, whatever they were made of.
        self._array = np.ndarray(array.shape, array.dtype, _open(array))

    def __array__(self, dtype: Any = None) -> npt.NDArray[Any]:
        return self._array

    def __dlpack__(self, **_: Any) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def _open(array: npt.NDArray[Any]) -> Any:
    """Lend the memory of an array as writable, whatever that says."""
    return (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)


class TestTensors:
    """Of DLPack before 1.0, which is not asked to copy and cannot say that it is read-only."""

    @pytest.mark.parametrize("mode", MODES)
    def test_are_pinned_where_they_are(self, file, out, mode):
        with region(file(NBYTES), mode) as memory:
            tensor = _Tensor(words(memory)[: 2 * BLOCK // 8])
            with pinned(tensor) as same:
                assert same is tensor
                assert memory.stats().pinned_nbytes == 2 * BLOCK
                assert os.pwrite(out, tensor._array, 0) == 2 * BLOCK
            assert memory.stats().pinned_nbytes == 0
            assert os.pread(out, 2 * BLOCK, 0) == contents_of(2 * BLOCK)

    def test_may_be_written_by_system_calls(self, file, out):
        os.pwrite(out, contents_of(2 * BLOCK, 1), 0)
        with region(file(NBYTES), "c") as memory:
            tensor = _Tensor(words(memory)[: 2 * BLOCK // 8])
            with pinned(tensor):
                assert os.preadv(out, [tensor._array], 0) == 2 * BLOCK
            memory.evict()
            assert load(memory.address, 2 * BLOCK) == contents_of(2 * BLOCK, 1)


class TestChanges:
    def test_a_flush_saves_them_and_leaves_it_writable(self, file, out):
        path = file(NBYTES)
        with region(path, "r+") as memory, pinned(words(memory)[: MOST * 2048]) as part:
            for tag in (1, 2, 3):
                os.pwrite(out, contents_of(part.nbytes, tag), 0)
                assert os.preadv(out, [part], 0) == part.nbytes
                memory.flush()
                assert path.read_bytes()[: part.nbytes] == contents_of(part.nbytes, tag)
                assert memory.stats().dirty_nbytes == part.nbytes
            del part

    def test_a_flush_stalls_no_other_thread(self, file, out):
        """Not for a moment: a system call cannot wait for a page, as a thread does."""
        path = file(NBYTES)
        words_in = np.frombuffer(contents_of(MOST * BLOCK, 1), np.uint64)
        os.pwrite(out, words_in, 0)
        with region(path, "r+") as memory, pinned(words(memory)[: MOST * 2048]) as part:
            stop = threading.Event()
            flushes = 0

            def flush() -> None:
                nonlocal flushes
                while not stop.is_set():
                    memory.flush()
                    flushes += 1

            thread = threading.Thread(target=flush)
            thread.start()
            try:
                calls = 0
                while calls < 300 or flushes < 20:
                    calls += 1
                    assert os.preadv(out, [part], 0) == part.nbytes
                    assert os.pwrite(out, part, 0) == part.nbytes
                    part += 1
                    os.pwrite(out, words_in + np.uint64(calls), 0)
            finally:
                stop.set()
                thread.join()
            memory.flush()
            assert (np.fromfile(path, np.uint64, part.size) == part).all()
            assert (part == words_in + np.uint64(calls)).all()
            del part

    def test_a_flush_that_fails_loses_none(self, file, out):
        path = file(NBYTES)
        faults = [Fault("write", first=0, count=3, errno=errno.ENOSPC)]
        os.pwrite(out, contents_of(4 * BLOCK, 1), 0)
        with region(path, "r+", faults=faults, store_timeout=0) as memory:
            with pinned(words(memory)[: 4 * 2048]) as part:
                assert os.preadv(out, [part], 0) == part.nbytes
                with pytest.raises(StoreError) as caught:
                    memory.flush()
                assert caught.value.errno == errno.ENOSPC
                assert os.pwrite(out, part, 0) == part.nbytes
            del part
            for _ in range(3):
                with contextlib.suppress(StoreError):
                    memory.flush()
            memory.flush()
        assert path.read_bytes()[: 4 * BLOCK] == contents_of(4 * BLOCK, 1)

    def test_what_is_only_to_be_read_is_not_written_back(self, file, out):
        path = file(NBYTES)
        with region(path, "r+") as memory:
            array = words(memory)[:4096]
            with pinned(array, write=False):
                assert os.pwrite(out, array, 0) == array.nbytes
                assert memory.stats().dirty_nbytes == 0
                array[0] = 7  # by a thread, whose fault is served
                assert memory.stats().dirty_nbytes == BLOCK
                memory.flush()
                assert np.fromfile(path, np.uint64, 1)[0] == 7
                with pinned(array):
                    assert memory.stats().dirty_nbytes == 2 * BLOCK
            memory.flush()
            assert (memory.stats().dirty_nbytes, memory.stats().written_back) == (0, 3)
            array.flags.writeable = False
            with pinned(array):
                assert memory.stats().dirty_nbytes == 0
            del array

    def test_a_read_only_region_is_not_pinned_to_be_written(self, file):
        with (
            region(file(NBYTES)) as memory,
            pytest.raises(ValueError, match="is read-only"),
            pinned(memory, write=True),
        ):
            pass


class TestEnds:
    def test_it_cannot_be_closed_meanwhile(self, file):
        with region(file(NBYTES)) as memory:
            view = memoryview(memory)[:10]
            with pinned(view):
                view.release()
                with pytest.raises(BufferError, match="still in use"):
                    memory.close()
                assert blocks_pinned(memory) == 1
            memory.close()

    def test_a_child_has_no_part_in_it(self, file, out):
        with region(file(NBYTES)) as memory, contextlib.ExitStack() as stack:
            part = stack.enter_context(pinned(words(memory)[:4096]))
            with living_child(stack.close) as child:
                assert child.result() is None
                memory.evict()
                assert os.pwrite(out, part, 0) == part.nbytes
            assert blocks_pinned(memory) == 2
            stack.close()
            assert blocks_pinned(memory) == 0
            del part

    def test_of_a_closed_region_there_is_nothing_to_pin(self, file):
        with region(file(NBYTES)) as memory:
            memory.close()
            with pytest.raises(ValueError, match="is closed"), pinned(memory):
                pass


def test_many_threads_pin_what_overlaps(file, out):
    """Counts stay right, no block leaves while it is pinned, and the limit holds."""
    path = file(NBYTES)
    failures: list[BaseException] = []
    with region(path, "r+") as memory, memoryview(memory) as view:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            fd = os.memfd_create("own")
            try:
                for _ in range(60):
                    first = int(rng.integers(0, BLOCKS - 3))
                    with pinned(view[first * BLOCK : (first + 3) * BLOCK]) as part:
                        assert os.pwrite(fd, part, 0) == len(part)
                        assert os.preadv(fd, [part], 0) == len(part)
                        assert memory.stats().resident_nbytes <= LIMIT
                        part.release()
                    load(memory.address + int(rng.integers(0, NBYTES - 8)))
            except BaseException as error:
                failures.append(error)
            finally:
                os.close(fd)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            memory.flush()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        assert memory.stats().pinned_nbytes == 0
        memory.evict()
        assert load(memory.address, NBYTES) == contents_of(NBYTES)

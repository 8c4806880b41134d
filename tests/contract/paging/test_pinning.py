"""What is pinned stays, so that system calls work whose faults nobody serves."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedMemory, PageState, StoreError, lowlevel, pinned
from pagemove._native import pager
from pagemove.introspect import states_at
from support import child, living_child, wait_for
from support.paging import (
    KIB,
    MIB,
    MODES,
    Fault,
    Peak,
    Struck,
    contents_of,
    expected,
    load,
    paged,
    store,
    words,
)

pytestmark = pytest.mark.needs("paging")

_BLOCK = 16 * KIB
_BLOCKS = 32
_NBYTES = _BLOCKS * _BLOCK
_LIMIT = 16 * _BLOCK
_MOST = 12


@pytest.fixture(autouse=True)
def ordinary() -> Iterator[None]:
    """Do as for a user without privileges: nobody serves the faults of system calls."""
    pager.set_kernel_faults(False)
    yield
    pager.set_kernel_faults(True)


@pytest.fixture
def out() -> Iterator[int]:
    fd = os.memfd_create("out")
    yield fd
    os.close(fd)


@contextlib.contextmanager
def region(path: Path, mode: str = "r", blocks: int = 16, **paging) -> Iterator[PagedMemory]:
    how = {"resident_limit": blocks * _BLOCK, "block_size": _BLOCK, "prefetch": "off", **paging}
    with paged(path, mode, **how) as memory:
        yield memory


def blocks_pinned(memory: PagedMemory) -> int:
    return memory.stats().pinned_nbytes // memory.block_size


def refusal(view: object) -> str:
    """Return why a view cannot be pinned, and keep nothing of it."""
    with pytest.raises(ValueError, match="cannot pin") as caught, pinned(view):
        pass
    return str(caught.value)


def is_there(memory: PagedMemory, first: int, count: int) -> bool:
    pages = count * memory.block_size // PAGE_SIZE
    states = states_at(memory.address + first * memory.block_size, pages)
    return bool((states & PageState.PRESENT).all())


def _in_a_helper(out: int) -> bool:
    with PagedMemory(nbytes=_NBYTES, resident_limit=_LIMIT, block_size=4096) as memory:
        assert not memory.kernel_faults
        with memoryview(memory) as view, pinned(view[: _NBYTES // 4]) as part:
            os.pwrite(out, contents_of(len(part)), 0)
            assert os.preadv(out, [part], 0) == len(part)
            part.release()
        memory.evict()
        return load(memory.address, _NBYTES // 4) == contents_of(_NBYTES // 4)


def answers(out: int, part: memoryview) -> bool:
    """Say whether a system call can read what may be poisoned for a moment."""
    with contextlib.suppress(OSError):
        return os.pwrite(out, part, 0) == len(part)
    return False


class TestSystemCalls:
    @pytest.mark.parametrize("mode", MODES)
    def test_read_what_is_pinned(self, file, out, mode):
        path = file(_NBYTES)
        with region(path, mode) as memory, memoryview(memory) as view:
            part = view[_BLOCK + 100 : 9 * _BLOCK - 8]
            with pytest.raises(OSError, match="Bad address") as caught:
                os.pwrite(out, part, 0)
            assert caught.value.errno == errno.EFAULT
            with pinned(part) as same:
                assert same is part
                assert os.pwrite(out, part, 0) == len(part)
            assert (
                os.pread(out, len(part), 0) == contents_of(_NBYTES)[_BLOCK + 100 : 9 * _BLOCK - 8]
            )
            part.release()

    @pytest.mark.parametrize("mode", ["r+", "c"])
    @pytest.mark.parametrize("touched", ["no", "read", "written"])
    def test_write_into_it(self, file, out, mode, touched):
        path = file(_NBYTES)
        data = contents_of(8 * _BLOCK, 1)
        os.pwrite(out, data, 0)
        with region(path, mode) as memory, memoryview(memory) as view:
            if touched == "read":
                load(memory.address, 8 * _BLOCK)
            elif touched == "written":
                store(memory.address, bytes(8 * _BLOCK))
            part = view[: 8 * _BLOCK]
            with pinned(part):
                assert os.preadv(out, [part], 0) == len(part)
            # It leaves, and comes back.
            memory.evict()
            assert load(memory.address, len(part)) == data
            part.release()
        in_file = path.read_bytes()[: 8 * _BLOCK]
        assert in_file == (data if mode == "r+" else contents_of(8 * _BLOCK))

    def test_sockets(self, file):
        one, other = socket.socketpair()
        with one, other, region(file(_NBYTES), "c") as memory, memoryview(memory) as view:
            part = view[3 * _BLOCK : 3 * _BLOCK + 5000]
            with pytest.raises(OSError, match="Bad address"):
                one.send(part)
            with pinned(part):
                one.sendall(part)
                with pinned(view[8 * _BLOCK : 8 * _BLOCK + 5000]) as there:
                    assert other.recv_into(there, 0, socket.MSG_WAITALL) == 5000
                    assert there == part
                    there.release()
            part.release()

    def test_what_numpy_and_pickle_write(self, file, tmp_path):
        with region(file(_NBYTES)) as memory:
            array = memory.asarray(np.uint64)[: _MOST * _BLOCK // 8]
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
        wanted = expected(_MOST * _BLOCK)
        assert (np.fromfile(tmp_path / "raw", np.uint64) == wanted).all()
        assert (np.load(tmp_path / "saved.npy") == wanted).all()
        assert (pickle.loads((tmp_path / "pickle").read_bytes()) == wanted).all()

    @pytest.mark.needs("fork", "zstandard")
    def test_a_store_in_a_helper(self, out):
        assert child(_in_a_helper, out)


class TestViews:
    @pytest.mark.parametrize(
        ("of", "blocks"),
        [
            (lambda a: a[5:6], [0]),
            (lambda a: a[2047:2049], [0, 1]),
            (lambda a: a[::-1][-3000:], [0, 1]),
            (lambda a: a[:: 4 * 2048], [0, 4, 8, 12, 16, 20, 24, 28]),
            (lambda a: a[:: -4 * 2048], [3, 7, 11, 15, 19, 23, 27, 31]),
            (lambda a: a[:: 2 * 2048 - 1][:5], [0, 1, 3, 5, 7]),
            (lambda a: a.reshape(4, 8, 2048)[1::2, ::3, 5], [8, 11, 14, 24, 27, 30]),
            (lambda a: a.reshape(4, 8, 2048)[1::2, ::3, 5].T, [8, 11, 14, 24, 27, 30]),
            (lambda a: np.broadcast_to(a[9:10], (1 << 30, 1 << 20)), [0]),
            (lambda a: np.lib.stride_tricks.sliding_window_view(a[:6000], 3000)[::2], [0, 1, 2]),
            (lambda a: a[:0], []),
            (lambda a: a[2048:].view("u1")[1:].data, [*range(1, 32)]),
            (lambda a: a[2048:4096].data[::-1], [1]),
        ],
    )
    def test_only_the_blocks_of_its_items(self, file, of, blocks):
        with region(file(_NBYTES), blocks=64) as memory:
            view = of(words(memory))
            with pinned(view):
                there = [n for n in range(_BLOCKS) if is_there(memory, n, 1)]
                assert there == blocks
                assert blocks_pinned(memory) == len(blocks)
            assert blocks_pinned(memory) == 0
            del view

    def test_a_region_itself(self, file, out):
        with region(file(_NBYTES - 100), blocks=_BLOCKS) as memory:
            with pinned(memory):
                assert blocks_pinned(memory) == _BLOCKS
                assert os.pwrite(out, memory, 0) == memory.nbytes
            assert os.pread(out, _NBYTES, 0) == contents_of(_NBYTES - 100)

    def test_of_several_regions(self, file, out):
        with region(file(_NBYTES)) as one, region(file(_NBYTES, 1), "c") as other:
            from_one, to_other = words(one)[:4096], words(other)[-4096:]
            with pinned(from_one), pinned(to_other):
                assert (blocks_pinned(one), blocks_pinned(other)) == (2, 2)
                assert os.pwrite(out, from_one, 0) == os.preadv(out, [to_other], 0) == 32768
                assert (from_one == to_other).all()
            assert (blocks_pinned(one), blocks_pinned(other)) == (0, 0)
            del from_one, to_other

    @pytest.mark.parametrize("of", [np.zeros, bytearray, lambda n: [np.zeros(n)] and b"x" * n])
    def test_what_is_not_paged_needs_nothing(self, of):
        thing = of(1000)
        with pinned(thing) as same:
            assert same is thing

    def test_a_copy_needs_nothing(self, file):
        with region(file(_NBYTES)) as memory, pinned(words(memory)[:100].copy()):
            assert blocks_pinned(memory) == 0

    @pytest.mark.parametrize("thing", [[1, 2], "text", 5, None])
    def test_what_has_no_memory_is_refused(self, thing):
        with pytest.raises(TypeError, match="it has no buffer; pin an array"), pinned(thing):
            pass


class TestLimit:
    @pytest.mark.parametrize("mode", MODES)
    def test_all_but_four_blocks_and_the_rest_is_paged(self, file, out, mode):
        with region(file(_NBYTES), mode) as memory, memoryview(memory) as view:
            with pinned(view[: _MOST * _BLOCK]) as part, Peak() as peak:
                for start in [*range(0, _NBYTES, 1000), *range(_NBYTES - 8, 0, -3001)]:
                    assert load(memory.address + start) == contents_of(_NBYTES)[start : start + 8]
                if mode != "r":
                    store(memory.address + _MOST * _BLOCK, bytes(_NBYTES - _MOST * _BLOCK))
                memory.evict()
                assert is_there(memory, 0, _MOST)
                assert memory.stats().resident_nbytes <= _LIMIT
                assert os.pwrite(out, part, 0) == len(part)
                part.release()
            assert peak.last <= MIB
            assert os.pread(out, _MOST * _BLOCK, 0) == contents_of(_MOST * _BLOCK)

    @pytest.mark.parametrize("mode", MODES)
    def test_more_is_refused_by_sizes_and_nothing_is_pinned(self, file, mode):
        with region(file(_NBYTES), mode) as memory:
            array = words(memory)
            refused = refusal(array[: (_MOST + 1) * _BLOCK // 8])
            assert refused.startswith("cannot pin 208 KiB of ")
            assert "of its limit of 256 KiB at most 192 KiB can be pinned at a time;" in refused
            assert "raise resident_limit by 16 KiB" in refused
            assert (memory.stats().pinned_nbytes, memory.stats().bytes_read) == (0, 0)
            with pinned(array[: 10 * 2048]):
                assert ", 160 KiB are pinned already;" in refusal(array[8 * 2048 : 13 * 2048])
                assert blocks_pinned(memory) == 10
                with pinned(array[: 12 * 2048]):
                    assert blocks_pinned(memory) == 12
            del array

    @pytest.mark.parametrize(
        ("mode", "blocks", "limit", "most"),
        [("r", 8, 8, 8), ("r+", 8, 8, 4), ("c", 8, 9, 8), ("r", 8, 7, 3), ("r+", 6, 8, 6)],
    )
    def test_a_region_as_large_as_its_limit(self, file, out, mode, blocks, limit, most):
        with region(file(blocks * _BLOCK), mode, limit) as memory:
            assert memory.pinnable == most * _BLOCK
            with pinned(words(memory)[: most * 2048]) as part:
                assert memory.stats().resident_nbytes <= limit * _BLOCK
                assert os.pwrite(out, part, 0) == most * _BLOCK
                if mode != "r":
                    os.pwrite(out, contents_of(most * _BLOCK, 1), 0)
                    assert os.preadv(out, [part], 0) == most * _BLOCK
                    memory.flush()
            assert (part == expected(most * _BLOCK, int(mode != "r"))).all()
            del part

    def test_huge_writable_blocks_leave_eight(self, file):
        block = 2 * MIB
        with region(file(40 * MIB), "r+", block_size=block, resident_limit=34 * block) as memory:
            assert memory.pinnable == 20 * block
        with region(file(80 * MIB), "r+", block_size=block, resident_limit=36 * block) as memory:
            assert memory.pinnable == 28 * block

    def test_no_limit(self, file):
        with region(file(_NBYTES), "r+", resident_limit=None) as memory, pinned(memory):
            assert blocks_pinned(memory) == _BLOCKS


class TestStays:
    def test_as_long_as_the_last_of_those_that_overlap(self, file):
        with region(file(_NBYTES)) as memory:
            array = words(memory)
            with pinned(array[: 6 * 2048]), contextlib.ExitStack() as second:
                second.enter_context(pinned(array[4 * 2048 : 8 * 2048]))
                with pinned(array[: 2 * 2048]):
                    assert blocks_pinned(memory) == 8
                second.close()
                assert blocks_pinned(memory) == 6
                memory.evict()
                assert is_there(memory, 0, 6)
                assert not is_there(memory, 7, 1)
            memory.evict()
            assert not (states_at(memory.address, _NBYTES // PAGE_SIZE) & PageState.PRESENT).any()
            del array

    def test_it_is_let_go_by_an_exception(self, file):
        with region(file(_NBYTES)) as memory:
            with contextlib.suppress(KeyError), pinned(words(memory)[:4096]):
                assert blocks_pinned(memory) == 2
                raise KeyError
            assert blocks_pinned(memory) == 0

    @pytest.mark.parametrize("mode", MODES)
    def test_whatever_was_under_way_with_its_blocks(self, file, out, mode):
        """They come from standby, from read-ahead, from being written, and partly discarded."""
        with region(file(_NBYTES), mode, prefetch="auto") as memory, memoryview(memory) as view:
            rng = np.random.default_rng(1)
            for turn in range(60):
                first = int(rng.integers(0, _BLOCKS - 8))
                for block in rng.integers(0, _BLOCKS, 10).tolist():
                    load(memory.address + block * _BLOCK)
                if mode != "r":
                    at = int(rng.integers(0, _BLOCKS))
                    store(
                        memory.address + at * _BLOCK,
                        bytes(contents_of(_NBYTES)[at * _BLOCK :][:64]),
                    )
                elif turn % 3 == 0:
                    page = memory.address + first * _BLOCK + PAGE_SIZE
                    lowlevel.madvise(page, PAGE_SIZE, mmap.MADV_DONTNEED)
                memory.prefetch(first * _BLOCK, 4 * _BLOCK)
                with pinned(view[first * _BLOCK : (first + 8) * _BLOCK]) as part:
                    assert os.pwrite(out, part, 0) == len(part)
                    part.release()
                found = os.pread(out, 8 * _BLOCK, 0)
                assert found == contents_of(_NBYTES)[first * _BLOCK : (first + 8) * _BLOCK]
            assert memory.stats().pinned_nbytes == 0

    def test_a_store_that_is_refused_takes_it_away_for_a_moment_only(self, file, out):
        with (
            region(file(_NBYTES)) as memory,
            memoryview(memory) as view,
            pinned(view[:32768]) as part,
        ):
            with pytest.raises(Struck):
                store(memory.address, b"x")
            # Nobody touches it, and looking brings nothing back.
            wait_for(lambda: is_there(memory, 0, 2))
            wait_for(lambda: answers(out, part))
            assert os.pread(out, 32768, 0) == contents_of(32768)
            part.release()

    def test_a_block_that_cannot_be_read(self, file):
        path = file(_NBYTES)
        faults = [Fault("read", first=2, count=1 << 30, errno=errno.EIO)]
        with region(path, faults=faults, store_timeout=0.05) as memory:
            part = memory.asarray(np.uint8)[: 8 * _BLOCK]
            with pytest.raises(StoreError, match="cannot read"), pinned(part):
                pass
            del part
            assert memory.stats().pinned_nbytes == 0


class TestChanges:
    def test_a_flush_saves_them_and_leaves_it_writable(self, file, out):
        path = file(_NBYTES)
        with region(path, "r+") as memory, pinned(words(memory)[: _MOST * 2048]) as part:
            for tag in (1, 2, 3):
                os.pwrite(out, contents_of(part.nbytes, tag), 0)
                assert os.preadv(out, [part], 0) == part.nbytes
                memory.flush()
                assert path.read_bytes()[: part.nbytes] == contents_of(part.nbytes, tag)
                assert memory.stats().dirty_nbytes == part.nbytes
            del part

    def test_nobody_is_held_up_while_one_flushes(self, file, out):
        """Not for a moment: a system call cannot wait for a page, as a thread does."""
        path = file(_NBYTES)
        words_in = np.frombuffer(contents_of(_MOST * _BLOCK, 1), np.uint64)
        os.pwrite(out, words_in, 0)
        with region(path, "r+") as memory, pinned(words(memory)[: _MOST * 2048]) as part:
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
        path = file(_NBYTES)
        faults = [Fault("write", first=0, count=3, errno=errno.ENOSPC)]
        os.pwrite(out, contents_of(4 * _BLOCK, 1), 0)
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
        assert path.read_bytes()[: 4 * _BLOCK] == contents_of(4 * _BLOCK, 1)

    def test_what_is_only_to_be_read_is_not_written_back(self, file, out):
        path = file(_NBYTES)
        with region(path, "r+") as memory:
            array = words(memory)[:4096]
            with pinned(array, write=False):
                assert os.pwrite(out, array, 0) == array.nbytes
                assert memory.stats().dirty_nbytes == 0
                array[0] = 7  # by a thread, whose fault is served
                assert memory.stats().dirty_nbytes == _BLOCK
                memory.flush()
                assert np.fromfile(path, np.uint64, 1)[0] == 7
                with pinned(array):
                    assert memory.stats().dirty_nbytes == 2 * _BLOCK
            memory.flush()
            assert (memory.stats().dirty_nbytes, memory.stats().written_back) == (0, 3)
            array.flags.writeable = False
            with pinned(array):
                assert memory.stats().dirty_nbytes == 0
            del array

    def test_a_read_only_region_is_not_pinned_to_be_written(self, file):
        with (
            region(file(_NBYTES)) as memory,
            pytest.raises(ValueError, match="is read-only"),
            pinned(memory, write=True),
        ):
            pass


class TestEnds:
    def test_it_cannot_be_closed_meanwhile(self, file):
        with region(file(_NBYTES)) as memory:
            view = memoryview(memory)[:10]
            with pinned(view):
                view.release()
                with pytest.raises(BufferError, match="still in use"):
                    memory.close()
                assert blocks_pinned(memory) == 1
            memory.close()

    def test_a_child_has_no_part_in_it(self, file, out):
        with region(file(_NBYTES)) as memory, contextlib.ExitStack() as stack:
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
        with region(file(_NBYTES)) as memory:
            memory.close()
            with pytest.raises(ValueError, match="is closed"), pinned(memory):
                pass


def test_many_threads_pin_what_overlaps(file, out):
    """Counts stay right, no block leaves while it is pinned, and the limit holds."""
    path = file(_NBYTES)
    failures: list[BaseException] = []
    with region(path, "r+") as memory, memoryview(memory) as view:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            fd = os.memfd_create("own")
            try:
                for _ in range(60):
                    first = int(rng.integers(0, _BLOCKS - 3))
                    with pinned(view[first * _BLOCK : (first + 3) * _BLOCK]) as part:
                        assert os.pwrite(fd, part, 0) == len(part)
                        assert os.preadv(fd, [part], 0) == len(part)
                        assert memory.stats().resident_nbytes <= _LIMIT
                        part.release()
                    load(memory.address + int(rng.integers(0, _NBYTES - 8)))
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
        assert load(memory.address, _NBYTES) == contents_of(_NBYTES)

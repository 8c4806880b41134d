"""stores/layered.py and stores/copies.py: what a flush that failed has lost, and what follows."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import FileStore, LayeredStore, file
from pagemove.testing import Fault, FaultyStore
from support.children import child
from support.layers import BOTTOM, Counting, Device, K, N, faulty, layered, read, top_file
from support.stores import BytesStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return top_file(tmp_path)


@pytest.fixture
def bottom() -> Counting:
    return Counting()


class TestFailedFlush:
    """What a failed sync may have lost is not taken for durable by the next."""

    def test_what_was_written_has_to_be_written_again(self, path, bottom):
        with faulty(path, bottom) as store:
            store.write(8 * K, b"w" * 4 * K)
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            for _ in range(2):
                with pytest.raises(StoreError, match="earlier flush has failed"):
                    store.flush()
            store.write(8 * K, b"w" * 4 * K)
            store.flush()
            assert read(store, 8 * K, 4 * K) == b"w" * 4 * K

    def test_what_was_copied_is_copied_again(self, path, bottom):
        """The top is given old contents, as by a device that has lost the write."""
        with faulty(path, bottom) as store:
            assert read(store) == BOTTOM
            store.write(20 * K, b"written over")
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            path.write_bytes(b"?" * N)
            # Only what was copied: the rest is for who has written it.
            assert read(store, 0, 20 * K) == BOTTOM[: 20 * K]
            store.write(20 * K, BOTTOM[20 * K : 24 * K])
            store.flush()
            assert path.read_bytes() == BOTTOM == read(store)

    def test_what_is_written_while_it_fails_is_not_taken_for_a_copy(self, path, bottom):
        with layered(path, bottom) as store:
            read(store)

            def sync() -> None:
                store.write(0, b"w" * 4 * K)
                raise OSError(errno.EIO, "lost")

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(store.top, "_sync", sync)
                with pytest.raises(StoreError, match="EIO"):
                    store.flush()
            assert read(store) == b"w" * 4 * K + BOTTOM[4 * K :]
            store.write(0, b"w" * 4 * K)
            store.flush()
            assert path.read_bytes() == b"w" * 4 * K + BOTTOM[4 * K :]

    def test_a_part_is_written_over_what_is_below_then(self, path, bottom):
        with faulty(path, bottom) as store:
            read(store)
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            path.write_bytes(b"?" * N)
            store.write(4 * K + 1, b"part")
            store.flush()
            expected = BOTTOM[: 4 * K + 1] + b"part" + BOTTOM[4 * K + 5 :]
            assert path.read_bytes() == expected == read(store)

    def test_what_was_being_copied_is_copied_again(self, path, bottom, monkeypatch):
        """It was on its way to the top when the flush began, and arrives after it has failed."""
        real, begun, failed = os.pwrite, threading.Event(), threading.Event()

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            if threading.current_thread() is thread:
                begun.set()
                assert failed.wait(20)
            return real(fd, data, offset)

        with layered(path, bottom) as store:
            device = Device(store, path)
            thread = threading.Thread(target=read, args=(store, 8 * K, 8 * K))
            monkeypatch.setattr(file.os, "pwrite", pwrite)
            thread.start()
            assert begun.wait(20)
            device.failing = 1
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            failed.set()
            thread.join()
            path.write_bytes(device.durable)
            assert store.stats()["top_blocks"] == 0
            assert read(store, 8 * K, 4 * K) == BOTTOM[8 * K : 12 * K]
            store.flush()
            assert store.stats()["top_blocks"] == 2
            assert device.durable[8 * K : 16 * K] == BOTTOM[8 * K : 16 * K]

    def test_what_is_copied_while_it_fails_is_copied_again(self, path, bottom):
        with layered(path, bottom) as store:
            device = Device(store, path)
            read(store, 0, 4 * K)

            def sync() -> None:
                read(store, 8 * K, 4 * K)
                store.write(16 * K + 5, b"part")
                device.failing = 1
                device.sync()

            store.top._sync = sync
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            store.top._sync = device.sync
            assert store.stats()["top_blocks"] == 0
            store.write(16 * K + 5, b"part")
            store.flush()
            expected = BOTTOM[16 * K : 16 * K + 5] + b"part" + BOTTOM[16 * K + 9 : 20 * K]
            assert device.durable[16 * K : 20 * K] == expected == read(store, 16 * K, 4 * K)
            for block in (0, 2):
                place = slice(4 * K * block, 4 * K * (block + 1))
                assert device.durable[place] == BOTTOM[place]
            assert store.stats()["top_blocks"] == 3

    @pytest.mark.parametrize("cache", [True, False])
    def test_the_rest_of_what_was_written_in_part_is_copied_again(self, path, bottom, cache):
        """Who wrote the part writes that again, and knows of nothing else."""
        with layered(path, bottom, cache=cache) as store:
            device = Device(store, path)
            store.write(9 * K, b"one")
            store.write(10 * K, b"another")
            device.failing = 1
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            rest = [(8 * K, K), (9 * K + 3, K - 3), (10 * K + 7, 2 * K - 7)]
            for offset, length in rest:
                assert read(store, offset, length) == BOTTOM[offset:][:length]
            with pytest.raises(StoreError, match=f"bytes {9 * K} to {9 * K + 3} "):
                store.flush()
            store.write(9 * K, b"one")
            with pytest.raises(StoreError, match=f"bytes {10 * K} to {10 * K + 7} "):
                store.flush()
            store.write(10 * K, b"another")
            store.flush()
            expected = bytearray(BOTTOM[8 * K : 12 * K])
            expected[K : K + 3], expected[2 * K : 2 * K + 7] = b"one", b"another"
            assert read(store, 8 * K, 4 * K) == expected == device.durable[8 * K : 12 * K]

    def test_what_was_written_in_part_is_read_as_far_as_it_has_arrived(self, path, bottom):
        """The device has failed, but kept it. Blocks about it are read through."""
        with faulty(path, bottom) as store:
            store.write(9 * K, b"one")
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            expected = BOTTOM[: 9 * K] + b"one" + BOTTOM[9 * K + 3 :]
            assert read(store) == expected
            assert store.stats()["top_blocks"] == 25

    def test_a_process_that_comes_after_finds_what_is_below(self, path, bottom):
        with layered(path, bottom) as store:
            device = Device(store, path)
            read(store)
            device.failing = 1
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
        with layered(path, bottom) as store:
            assert read(store) == BOTTOM

    @pytest.mark.needs("fork")
    def test_a_forked_child_knows_of_it(self, bottom):
        """Of a top that it shares; with the map in memory."""

        class Failing(BytesStore):
            def flush(self) -> None:
                self._contents[:] = b"?" * N
                raise OSError(errno.EIO, "lost")

        with LayeredStore(Failing(b"?" * N, writable=True), bottom, block_size=4 * K) as store:
            store.write(5, b"part")
            with pytest.raises(OSError, match="lost"):
                store.flush()
            expected = BOTTOM[:5] + b"????" + BOTTOM[9:]
            assert child(read, store) == expected == read(store)

    def test_a_copy_that_failed_is_not_waited_for(self, path, bottom):
        """A top without room, that fails to sync besides: all that was written is written again."""
        faults = [Fault("write", count=1, errno=errno.ENOSPC), Fault("flush", errno=errno.EIO)]
        with (
            FaultyStore(path, writable=True, faults=faults) as top,
            LayeredStore(top, bottom, block_size=4 * K) as store,
        ):
            assert read(store, 0, 4 * K) == BOTTOM[: 4 * K]
            with pytest.raises(StoreError, match="EIO"):
                store.flush()
            store.flush()
            assert store.stats()["top_blocks"] == 0

    def test_what_is_read_while_it_fails_is_read_below(self, path, bottom):
        class Late(FileStore):
            def read_into(self, offset: int, buffer: bytearray) -> None:
                if device.failing:
                    with contextlib.suppress(StoreError):
                        store.flush()
                super().read_into(offset, buffer)

        with (
            Late(path, writable=True) as top,
            LayeredStore(top, bottom, block_size=4 * K) as store,
        ):
            device = Device(store, path)
            assert read(store) == BOTTOM
            device.failing = 1
            assert read(store) == BOTTOM


def check_durable(store: LayeredStore, device: Device, expected: bytes) -> None:
    """See that a crash leaves of blocks that are on top what is expected."""
    for block in range(26):
        if block in store._map:
            place = slice(4 * K * block, 4 * K * (block + 1))
            assert device.durable[place] == expected[place]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_flushed_is_right(path, bottom, seed):
    """By one who writes again what a failed flush was for, and by nobody else."""
    numbers = np.random.default_rng(seed)
    expected = np.frombuffer(bytearray(BOTTOM), np.uint8)
    unsynced, lost = np.zeros((2, N), bool)
    flushed, failed = 0, 0
    with layered(path, bottom, cache=bool(seed & 1)) as store:
        device = Device(store, path)
        for _ in range(600):
            offset = int(numbers.integers(N))
            length = int(min(numbers.choice([1, 100, 4 * K, 20 * K]), N - offset))
            place, what = slice(offset, offset + length), numbers.integers(10)
            if what < 4:
                found = np.frombuffer(read(store, offset, length), np.uint8)
                assert (found == expected[place])[~lost[place]].all()
            elif what < 8:
                expected[place] = np.frombuffer(numbers.bytes(length), np.uint8)
                store.write(offset, expected[place].tobytes())
                unsynced[place], lost[place] = True, False
            elif what == 8:
                device.failing = 1
                with pytest.raises(StoreError, match="EIO"):
                    store.flush()
                lost |= unsynced
                failed += 1
            else:
                if lost.any():
                    with pytest.raises(StoreError, match="earlier flush"):
                        store.flush()
                ends = np.flatnonzero(np.diff(lost, prepend=False, append=False)).tolist()
                for start, end in zip(ends[::2], ends[1::2], strict=True):
                    store.write(start, expected[start:end].tobytes())
                lost[:] = unsynced[:] = False
                store.flush()
                flushed += 1
                check_durable(store, device, expected.tobytes())
                assert read(store) == expected.tobytes()
    assert flushed > 20
    assert failed > 20


def test_threads_that_copy_and_write_while_flushes_fail(path, bottom):
    """Each writes bytes of its own, of blocks that it shares with the others."""
    with layered(path, bottom) as store:
        device, expected = Device(store, path), bytearray(BOTTOM)

        def use(me: int) -> None:
            numbers = np.random.default_rng(me)
            while not ended.is_set():
                place = int(numbers.integers(N // 64)) * 64 + 16 * me
                expected[place : place + 16] = data = numbers.bytes(16)
                with contextlib.suppress(StoreError):
                    store.write(place, data)
                    written.append(place)
                    read(store, int(numbers.integers(N - K)), K)

        for _ in range(10):
            ended, written = threading.Event(), []
            threads = [threading.Thread(target=use, args=(me,)) for me in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(3):
                enough = len(written) + 20
                while len(written) < enough:
                    threads[0].join(0.001)
                device.failing = 1
                with pytest.raises(StoreError):
                    store.flush()
            ended.set()
            for thread in threads:
                thread.join()
            for place in written:
                store.write(place, expected[place : place + 16])
            store.flush()
            check_durable(store, device, expected)
            assert read(store) == expected

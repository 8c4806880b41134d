"""stores/compressed.py and stores/blocklog.py: what is kept, where, and what a crash leaves."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import CompressedStore, blocklog, replacement

K = 1024


def read(store, offset=0, length=None) -> bytes:
    buffer = bytearray(store.nbytes - offset if length is None else length)
    store.read_into(offset, buffer)
    return bytes(buffer)


def text(nbytes: int, seed: int = 0) -> bytes:
    """Return bytes that compress, to about a third."""
    return bytes(np.random.default_rng(seed).integers(0, 6, nbytes, np.uint8))


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    path = tmp_path / "blocks" if request.param == "file" else None
    with CompressedStore(300 * K, path=path, block_size=16 * K) as made:
        yield made


class TestBlocks:
    def test_new_is_zeros_and_takes_nothing(self, store):
        assert read(store) == bytes(300 * K)
        assert store.stats() | {"file_nbytes": 0, "compactions": 0} == {
            "blocks": 0,
            "stored_nbytes": 0,
            "ratio": 0,
            "file_nbytes": 0,
            "compactions": 0,
        }

    def test_blocks_of_zeros_take_nothing(self, store):
        store.write(0, text(300 * K))
        assert store.stats()["blocks"] == 19
        store.write(0, bytes(280 * K))
        assert store.stats()["blocks"] == 2
        assert read(store) == bytes(280 * K) + text(300 * K)[280 * K :]

    def test_parts_of_blocks(self, store):
        expected = bytearray(300 * K)
        numbers = random.Random(5)
        for seed in range(60):
            offset = numbers.randrange(300 * K)
            data = text(numbers.randrange(min(50 * K, 300 * K - offset) + 1), seed)
            store.write(offset, data)
            expected[offset : offset + len(data)] = data
        assert read(store) == expected

    def test_ratio(self, store):
        store.write(0, text(256 * K))
        told = store.stats()
        assert told["ratio"] == 256 * K / told["stored_nbytes"]
        assert 2 < told["ratio"] < 4

    def test_what_does_not_compress(self, store):
        data = os.urandom(300 * K)
        store.write(0, data)
        assert read(store) == data
        assert store.stats()["stored_nbytes"] < 301 * K

    def test_threads_that_write_parts_of_one_block(self, store):
        def fill(number: int) -> None:
            for offset in range(16 * number, 16 * K, 128):
                store.write(offset, bytes([number + 1]) * 16)

        threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pattern = b"".join(bytes([number + 1]) * 16 for number in range(8))
        assert read(store, 0, 16 * K) == pattern * 128

    @pytest.mark.parametrize("level", [-5, 1, 12])
    def test_levels(self, level):
        with CompressedStore(100 * K, level=level) as store:
            store.write(0, text(100 * K))
            assert read(store) == text(100 * K)


class TestInMemory:
    def test_is_not_restartable_and_pickles_as_a_copy(self):
        store = CompressedStore(100 * K)
        store.write(10, b"before")
        other = pickle.loads(pickle.dumps(store))
        store.write(10, b"after!")
        assert read(other, 10, 6) == b"before"
        assert not store.restartable
        assert not other.restartable

    def test_damage_is_an_error(self):
        store = CompressedStore(100 * K)
        store.write(0, text(64 * K))
        packed = bytearray(store._shelf.blocks[0])
        packed[len(packed) // 2] ^= 4
        store._shelf.blocks[0] = bytes(packed)
        with pytest.raises(StoreError, match="cannot read CompressedStore"):
            read(store, 0, 10)

    def test_refuses(self):
        with pytest.raises(ValueError, match="pass it, or a file"):
            CompressedStore()
        with pytest.raises(ValueError, match="nbytes must be positive"):
            CompressedStore(0)
        with pytest.raises(ValueError, match="level must be from -7 to 22, not 23"):
            CompressedStore(1, level=23)
        for size in (5000, 2 * K, 4096 * K):
            with pytest.raises(ValueError, match="power of two"):
                CompressedStore(1, block_size=size)

    def test_without_zstandard(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'pagemove\[compressed\]'"):
            CompressedStore(100)


class TestFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "blocks"

    def test_is_there_when_opened_again(self, path):
        with CompressedStore(300 * K, path=path) as store:
            assert store.restartable
            store.write(100, text(200 * K))
            store.write(150 * K, bytes(100 * K))
            expected = read(store)
        with CompressedStore(path=path) as store:
            assert store.nbytes == 300 * K
            assert read(store) == expected
            assert store.stats()["blocks"] == 3

    def test_keeps_its_own_shape(self, path):
        CompressedStore(300 * K, path=path, block_size=4 * K).close()
        assert CompressedStore(300 * K, path=path).block_size == 4 * K
        with pytest.raises(ValueError, match="holds 307200 bytes, not 5"):
            CompressedStore(5, path=path)

    def test_is_used_by_one_at_a_time(self, path):
        first, second = CompressedStore(100 * K, path=path), CompressedStore(path=path)
        first.write(0, b"mine")
        for use in (lambda: read(second), lambda: second.write(0, b"x"), second.flush):
            with pytest.raises(StoreError, match="in use by another store"):
                use()
        first.close()
        assert read(second, 0, 4) == b"mine"
        second.close()

    def test_pickling_hands_it_over(self, path):
        with CompressedStore(100 * K, path=path) as store:
            store.write(5, b"filled here")
            with pickle.loads(pickle.dumps(store)) as other:
                assert read(other, 5, 11) == b"filled here"
                other.write(5, b"there")
            assert read(store, 5, 11) == b"there" + b"d here"

    def test_refuses_other_files(self, path):
        path.write_bytes(b"not ours" * 1000)
        with pytest.raises(ValueError, match="not a file of compressed blocks"):
            CompressedStore(100, path=path)
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="not a file of compressed blocks"):
            CompressedStore(path=path)
        with pytest.raises(FileNotFoundError):
            CompressedStore(path=path.with_name("none"))

    def test_compacts_when_more_than_half_is_dead(self, path, monkeypatch):
        monkeypatch.setattr(blocklog, "SLACK", 64 * K)
        expected = bytearray(300 * K)
        path.touch()
        path.unlink()
        with CompressedStore(300 * K, path=path, block_size=8 * K) as store:
            path.chmod(0o640)
            for seed in range(200):
                offset = 8 * K * (seed % 37)
                store.write(offset, text(8 * K, seed))
                expected[offset : offset + 8 * K] = text(8 * K, seed)
            told = store.stats()
            assert told["compactions"] > 3
            assert told["file_nbytes"] == path.stat().st_size
            assert told["file_nbytes"] < 2 * told["stored_nbytes"] + 70 * K
            assert read(store) == expected
            assert path.stat().st_mode & 0o777 == 0o640
        assert list(path.parent.iterdir()) == [path]
        with CompressedStore(path=path) as store:
            assert read(store) == expected

    def test_no_room_to_compact_is_no_reason_not_to_write(self, path, monkeypatch):
        monkeypatch.setattr(blocklog, "SLACK", 16 * K)
        full = []

        def beside(*_arguments: object) -> None:
            full.append(path.stat().st_size)
            raise OSError(errno.ENOSPC, "no space")

        with CompressedStore(64 * K, path=path, block_size=4 * K) as store:
            with monkeypatch.context() as patched:
                patched.setattr(replacement, "beside", beside)
                for seed in range(150):
                    store.write(0, text(64 * K, seed))
            assert 1 < len(full) < 10
            store.write(0, text(64 * K, 1000))
            for seed in range(200):
                store.write(0, text(64 * K, seed))
            assert store.stats()["compactions"] > 0
            assert read(store) == text(64 * K, 199)
        assert list(path.parent.iterdir()) == [path]

    def test_readers_do_not_notice_a_compaction(self, path, monkeypatch):
        monkeypatch.setattr(blocklog, "SLACK", 16 * K)
        wrong = []
        with CompressedStore(64 * K, path=path, block_size=4 * K) as store:
            store.write(0, b"a" * 64 * K)
            done = threading.Event()

            def look() -> None:
                while not done.is_set():
                    found = read(store)
                    if any(len(set(found[at : at + 4 * K])) > 1 for at in range(0, 64 * K, 4 * K)):
                        wrong.append(found)

            threads = [threading.Thread(target=look) for _ in range(3)]
            for thread in threads:
                thread.start()
            for number in range(3000):
                store.write(4 * K * (number % 16), bytes([number % 250 + 1]) * 4 * K)
            done.set()
            for thread in threads:
                thread.join()
            assert store.stats()["compactions"] > 2
        assert not wrong

    def test_a_torn_end_is_cut_off(self, path, tmp_path):
        """Whatever a crash leaves of what came after the last flush, what came before is there."""
        with CompressedStore(64 * K, path=path, block_size=4 * K) as store:
            store.write(0, text(64 * K, 1))
            store.flush()
            flushed = path.stat().st_size
            store.write(0, text(8 * K, 2))
        whole = path.read_bytes()
        assert len(whole) > flushed + 1000
        torn = tmp_path / "torn"
        for end in range(flushed, len(whole), 97):
            for tail in (b"", bytes(3000)):
                torn.write_bytes(whole[:end] + tail)
                with CompressedStore(path=torn) as store:
                    found = read(store)
                    assert found[8 * K :] == text(64 * K, 1)[8 * K :]
                    assert found[4 * K : 8 * K] == text(64 * K, 1)[4 * K : 8 * K]
                    assert found[: 4 * K] in (text(4 * K, 1), text(8 * K, 2)[: 4 * K])
                    store.write(100, b"goes on")
                    store.flush()
                with CompressedStore(path=torn) as store:
                    assert read(store, 100, 7) == b"goes on"

    def test_damage_to_what_was_durable_is_an_error(self, path, tmp_path):
        with CompressedStore(64 * K, path=path, block_size=4 * K) as store:
            store.write(0, text(64 * K))
            store.flush()
        whole = path.read_bytes()
        copy = tmp_path / "copy"
        for at in range(4096, len(whole), 211):
            shutil.copy(path, copy)
            with copy.open("r+b") as file:
                file.seek(at)
                file.write(bytes([whole[at] ^ 1]))
            with CompressedStore(path=copy) as store, pytest.raises(StoreError, match="damaged"):
                read(store)

    def test_no_space(self, path):
        resource = pytest.importorskip("resource")
        with CompressedStore(300 * K, path=path, block_size=4 * K) as store:
            store.write(0, text(4 * K))
            size = path.stat().st_size
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            signal = __import__("signal")
            ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700, before[1]))
            try:
                with pytest.raises(StoreError, match="File too large"):
                    store.write(4 * K, text(4 * K, 2))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                signal.signal(signal.SIGXFSZ, ignored)
            assert path.stat().st_size == size
            assert read(store, 0, 8 * K) == text(4 * K) + bytes(4 * K)
            store.write(4 * K, text(4 * K, 2))
        with CompressedStore(path=path) as store:
            assert read(store, 0, 8 * K) == text(4 * K) + text(4 * K, 2)

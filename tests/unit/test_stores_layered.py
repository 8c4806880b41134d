"""stores/layered.py and stores/layermap.py: which layer is read, and what a crash leaves."""

from __future__ import annotations

import errno
import pickle
import threading
from pathlib import Path

import pytest

from pagemove import StoreError
from pagemove.stores import CallableStore, CompressedStore, FileStore, LayeredStore, layermap
from pagemove.stores.faulty import Fault, FaultyFileStore
from support.stores import BytesStore

K = 1024
N = 100 * K + 5
BOTTOM = bytes(n * 7 % 251 for n in range(N))


class Counting(BytesStore):
    """Notes what is read of it."""

    def __init__(self) -> None:
        super().__init__(BOTTOM)
        self.reads: list[tuple[int, int]] = []

    def read_into(self, offset, buffer):
        self.reads.append((offset, len(buffer)))
        super().read_into(offset, buffer)


def read(store, offset=0, length=None) -> bytes:
    buffer = bytearray(store.nbytes - offset if length is None else length)
    store.read_into(offset, buffer)
    return bytes(buffer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "top"
    found.write_bytes(b"?" * N)
    return found


@pytest.fixture
def bottom() -> Counting:
    return Counting()


def layered(path: Path, bottom: Counting, **options) -> LayeredStore:
    top = FileStore(path, writable=True)
    try:
        return LayeredStore(top, bottom, **{"block_size": 4 * K, **options})
    except BaseException:
        top.close()
        raise


class TestCache:
    def test_the_bottom_is_read_once(self, path, bottom):
        with layered(path, bottom) as store:
            assert read(store) == read(store) == BOTTOM
            assert bottom.reads == [(0, N)]
            assert path.read_bytes() == BOTTOM
            assert store.stats() == {"top_blocks": 26, "blocks": 26}

    def test_by_whole_blocks_and_runs_of_them(self, path, bottom):
        with layered(path, bottom) as store:
            assert read(store, 9 * K, 10) == BOTTOM[9 * K : 9 * K + 10]
            assert bottom.reads == [(8 * K, 4 * K)]
            assert read(store, 2 * K, 20 * K) == BOTTOM[2 * K : 22 * K]
            assert bottom.reads[1:] == [(0, 8 * K), (12 * K, 12 * K)]

    def test_not_if_only_changes_are_to_be_kept(self, path, bottom):
        with layered(path, bottom, cache=False) as store:
            assert read(store, 5, 10) == BOTTOM[5:15]
            assert bottom.reads == [(5, 10)]
            assert path.read_bytes() == b"?" * N

    def test_a_top_without_room_is_read_through(self, path, bottom):
        with (
            FaultyFileStore(
                path, writable=True, faults=[Fault("write", count=1, errno=errno.ENOSPC)]
            ) as top,
            LayeredStore(top, bottom, block_size=4 * K) as store,
        ):
            assert read(store, 5000, 10) == BOTTOM[5000:5010]
            assert store.stats()["top_blocks"] == 0
            assert read(store, 5000, 10) == BOTTOM[5000:5010]
            assert store.stats()["top_blocks"] == 1

    def test_threads_read_the_bottom_once(self, path, bottom):
        with layered(path, bottom) as store:
            start = threading.Barrier(8)
            found = []

            def look() -> None:
                start.wait()
                found.append(read(store))

            threads = [threading.Thread(target=look) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [BOTTOM] * 8
            assert sum(length for _, length in bottom.reads) == N


class TestWriting:
    def test_stays_on_top(self, path, bottom):
        with layered(path, bottom, cache=False) as store:
            store.write(3 * K, b"x" * 6 * K)
            expected = BOTTOM[: 3 * K] + b"x" * 6 * K + BOTTOM[9 * K :]
            assert read(store) == expected
            assert store.stats()["top_blocks"] == 3
        assert bytes(bottom._contents) == BOTTOM
        assert path.read_bytes()[: 12 * K] == expected[: 12 * K]
        assert path.read_bytes()[12 * K :] == b"?" * (N - 12 * K)

    def test_whole_blocks_need_nothing_of_the_bottom(self, path, bottom):
        with layered(path, bottom) as store:
            store.write(4 * K, b"x" * 8 * K)
            store.write(100 * K, b"end!!")
            assert bottom.reads == []


class TestMap:
    def test_is_beside_the_file_and_found_again(self, path, bottom):
        with layered(path, bottom, cache=False) as store:
            assert store.restartable
            store.write(50_000, b"kept")
        with layered(path, bottom, cache=False) as store:
            assert read(store, 49_999, 6) == BOTTOM[49_999:50_000] + b"kept" + BOTTOM[50_004:50_005]
        assert path.with_name("top.map").exists()

    def test_after_a_crash_of_the_machine_only_what_was_flushed(self, path, bottom, monkeypatch):
        with layered(path, bottom, cache=False) as store:
            store.write(0, b"a" * 4 * K)
            store.flush()
            store.write(8 * K, b"b" * 4 * K)
        other = path.with_name("boot")
        other.write_text("another-boot-of-this-machine-with-36-c\n")
        monkeypatch.setattr(layermap, "_BOOT", other)
        for _ in range(2):
            with layered(path, bottom, cache=False) as store:
                assert read(store) == b"a" * 4 * K + BOTTOM[4 * K :]
        with layered(path, bottom, cache=False) as store:
            store.write(8 * K, b"c" * 4 * K)
        with layered(path, bottom, cache=False) as store:
            assert read(store, 8 * K, 4 * K) == b"c" * 4 * K

    def test_is_used_by_one_at_a_time(self, path, bottom):
        with layered(path, bottom), pytest.raises(BlockingIOError, match="another store"):
            layered(path, bottom)

    def test_is_handed_over_by_pickling(self, path, bottom):
        with layered(path, bottom) as store:
            store.write(0, b"first")
            with pickle.loads(pickle.dumps(store)) as other:
                assert read(other, 0, 5) == b"first"
                other.write(0, b"other")
                with pytest.raises(StoreError, match=r"its map .*another store"):
                    read(store)
            assert read(store, 0, 5) == b"other"

    def test_of_another_store_is_refused(self, path, bottom):
        layered(path, bottom).close()
        with pytest.raises(ValueError, match="not the map of such a store"):
            layered(path, bottom, block_size=8 * K)
        path.with_name("top.map").write_bytes(b"something else" * 100)
        with pytest.raises(ValueError, match="not the map of such a store"):
            layered(path, bottom)

    def test_one_that_was_made_and_never_used(self, path, bottom):
        path.with_name("top.map").write_bytes(bytes(5000))
        with layered(path, bottom) as store:
            assert read(store) == BOTTOM

    @pytest.mark.needs("zstandard")
    def test_in_memory(self, bottom):
        with LayeredStore(CompressedStore(N), bottom) as store:
            assert not store.restartable
            store.write(9, b"copied")
            other = pickle.loads(pickle.dumps(store))
            store.write(9, b"stayed")
            assert read(other, 9, 6) == b"copied"
            assert store.stats()["top.blocks"] == 1

    @pytest.mark.needs("zstandard")
    def test_in_memory_under_a_file_that_is_found_again(self, tmp_path, bottom):
        top = tmp_path / "blocks"
        with LayeredStore(CompressedStore(N, path=top), bottom) as store:
            store.write(9, b"kept")
        with LayeredStore(CompressedStore(N, path=top), bottom) as store:
            assert store.restartable
            assert read(store, 9, 4) == b"kept"


class TestRefuses:
    def test_lengths_that_differ(self, bottom, tmp_path):
        (tmp_path / "short").write_bytes(b"x")
        with (
            FileStore(tmp_path / "short", writable=True) as top,
            pytest.raises(ValueError, match=f"of one length, not 1 and {N} bytes"),
        ):
            LayeredStore(top, bottom)

    def test_a_top_that_cannot_be_written(self, bottom):
        with pytest.raises(ValueError, match="has to be writable"):
            LayeredStore(CallableStore(bytes, N), bottom)

    @pytest.mark.needs("zstandard")
    def test_a_map_that_would_remember_what_the_top_forgets(self, bottom, tmp_path):
        with pytest.raises(ValueError, match="forgets what is in it"):
            LayeredStore(CompressedStore(N), bottom, path=tmp_path / "map")

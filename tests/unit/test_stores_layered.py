"""stores/layered.py: which layer is read, and what is left on top."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from pagemove.stores import CallableStore, CompressedStore, FileStore, LayeredStore
from pagemove.testing import Fault, FaultyStore
from support.layers import BOTTOM, Counting, K, N, layered, read, top_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return top_file(tmp_path)


@pytest.fixture
def bottom() -> Counting:
    return Counting()


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
            FaultyStore(
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

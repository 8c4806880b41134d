"""stores/layered.py and stores/layermap.py: which layer is read, and what a crash leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import threading
from pathlib import Path

import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import CallableStore, CompressedStore, FileStore, LayeredStore, layermap
from pagemove.testing import Fault, FaultyStore
from support.children import child, living_child
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

    def test_an_empty_file_is_a_new_map(self, path, bottom):
        path.with_name("top.map").touch()
        with layered(path, bottom) as store:
            assert read(store) == BOTTOM

    def test_what_begins_with_zeros_is_left_as_it_is(self, path, bottom):
        """As the image of a disk does."""
        image = bytes(5000) + b"a file system"
        path.with_name("top.map").write_bytes(image)
        with pytest.raises(ValueError, match="not the map of such a store"):
            layered(path, bottom)
        assert path.with_name("top.map").read_bytes() == image

    def test_a_device_is_no_map(self, path, bottom):
        with (
            FileStore(path, writable=True) as top,
            pytest.raises(ValueError, match="not a regular file"),
        ):
            LayeredStore(top, bottom, path="/dev/null")

    def test_a_killed_maker_leaves_what_can_be_used(self, path, bottom, monkeypatch):
        """Made up to any of its writes: then it is a new map, or the whole one."""
        real, left = layermap.write_all, []

        class Killed(BaseException):
            pass

        def write_all(fd: int, data: bytes, offset: int) -> None:
            if not left:
                raise Killed
            left.pop()
            real(fd, data, offset)

        for writes in range(5):
            path.with_name("top.map").unlink(missing_ok=True)
            with monkeypatch.context() as patched, contextlib.suppress(Killed):
                left[:] = [None] * writes
                patched.setattr(layermap, "write_all", write_all)
                layered(path, bottom).close()
            with layered(path, bottom, cache=False) as store:
                assert read(store) == BOTTOM
                assert store.stats()["top_blocks"] == 0

    def test_a_flipped_bit_shows_no_other_layer(self, path, bottom):
        with layered(path, bottom, cache=False) as store:
            store.write(8 * K, b"b" * 8 * K)
            expected = read(store)
        map_file = path.with_name("top.map")
        whole = map_file.read_bytes()
        numbers = random.Random(4)
        places = [*range(76), *(numbers.randrange(4096, len(whole)) for _ in range(120))]
        refused = 0
        for at in places:
            changed = bytearray(whole)
            changed[at] ^= 1 << numbers.randrange(8)
            map_file.write_bytes(changed)
            try:
                with layered(path, bottom, cache=False) as store:
                    assert read(store) == expected
            except ValueError:
                refused += 1
                assert map_file.read_bytes() == changed
        assert refused > 100

    def test_a_map_that_was_removed_is_not_flushed(self, path, bottom):
        with layered(path, bottom) as store:
            store.write(0, b"x")
            path.with_name("top.map").unlink()
            with pytest.raises(StoreError, match="replaced, moved or removed"):
                store.flush()

    def test_links_to_the_top_have_one_map(self, path, bottom, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "elsewhere" / "link"
        link.symlink_to(path)
        with layered(path, bottom) as store:
            store.write(0, b"mine")
            with pytest.raises(BlockingIOError, match="another store"):
                layered(link, bottom)
        with layered(link, bottom) as store:
            assert read(store, 0, 4) == b"mine"

    @pytest.mark.needs("fork")
    def test_a_forked_child_does_not_keep_the_lock(self, path, bottom):
        with layered(path, bottom) as store, living_child():
            store.write(0, b"mine")
            store.close()
            with layered(path, bottom) as other:
                assert read(other, 0, 4) == b"mine"

    @pytest.mark.needs("fork")
    def test_a_forked_child_waits_for_no_thread_of_the_parent(self, bottom):
        with LayeredStore(BytesStore(b"t" * N, writable=True), bottom) as store:
            store.write(0, b"mine")
            with store._map._lock, store._copied._lock, store._opening:
                assert child(read, store, 0, 4) == b"mine"

    @pytest.mark.parametrize("folder", [b"caf\xe9", b"\xff\xfe"])
    def test_in_a_folder_that_is_not_utf_8(self, tmp_path, bottom, folder):
        home = os.fsencode(tmp_path) + b"/" + folder
        os.mkdir(home)
        path = Path(os.fsdecode(home + b"/top"))
        path.write_bytes(b"?" * N)
        with layered(path, bottom) as store:
            assert repr(store).isprintable()
            with PagedMemory(store, mode="r+", block_size=4 * K, store_timeout=20) as region:
                view = memoryview(region)
                view[:4] = b"over"
                region.flush()
                view.release()
            assert path.read_bytes()[:4] == b"over"
            store.write(0, b"x")
            path.with_name("top.map").unlink()
            with pytest.raises(StoreError, match="removed") as caught:
                store.flush()
            str(caught.value).encode()

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

    def test_a_map_whose_sync_failed_is_written_again(self, path, bottom, monkeypatch):
        real, fail = os.fdatasync, []

        def fdatasync(fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".map") and fail:
                fail.pop()
                # The device has lost what it was given.
                os.ftruncate(fd, 4096)
                raise OSError(errno.EIO, "lost")
            real(fd)

        monkeypatch.setattr(layermap.os, "fdatasync", fdatasync)
        with layered(path, bottom, cache=False) as store:
            store.write(0, b"a" * 4 * K)
            fail.append(None)
            with pytest.raises(StoreError, match=r"its map .*lost"):
                store.flush()
            store.flush()
        with layered(path, bottom, cache=False) as store:
            assert read(store) == b"a" * 4 * K + BOTTOM[4 * K :]


def faulty(path: Path, bottom: Counting) -> LayeredStore:
    """Make a store whose top fails to sync once."""
    top = FaultyStore(path, writable=True, faults=[Fault("flush", errno=errno.EIO)])
    return LayeredStore(top, bottom, block_size=4 * K)


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

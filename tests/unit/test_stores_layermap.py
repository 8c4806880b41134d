"""stores/layermap.py: the map of a layered store, its file, and what a crash leaves."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import random
import zlib
from pathlib import Path

import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import CompressedStore, FileStore, LayeredStore, layermap
from support.children import child, living_child
from support.layers import BOTTOM, Counting, K, N, layered, read, top_file
from support.stores import BytesStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return top_file(tmp_path)


@pytest.fixture
def bottom() -> Counting:
    return Counting()


_BLOCKS = 508 * 8 * 2


def _map(path: Path) -> layermap.LayerMap:
    return layermap.LayerMap(_BLOCKS * 4 * K, 4 * K, path)


def _bits_of_sectors(count: int) -> bytes:
    """Make a bitmap whose sectors differ, with the first blocks not on top."""
    return b"".join(bytes([0, number + 1]) * 254 for number in range(count))


def _map_file(path: Path, bits: bytes) -> bytes:
    """Make the file of a map that has these on top, durable; return what is in it."""
    with contextlib.closing(_map(path)) as made:
        for block in layermap.blocks_of(bits):
            made.add(block, block)
        made.settle(bits)
    return path.read_bytes()


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

    def test_a_sector_in_the_place_of_another_is_seen(self, tmp_path):
        """As a disk leaves it that has written to the wrong place."""
        bits = _bits_of_sectors(2)
        whole = _map_file(tmp_path / "map", bits)
        places = range(4096, len(whole), 512)
        assert len(places) == 4
        for one, other in itertools.combinations(places, 2):
            changed = bytearray(whole)
            changed[one : one + 512], changed[other : other + 512] = (
                whole[other : other + 512],
                whole[one : one + 512],
            )
            (tmp_path / "map").write_bytes(changed)
            if one < 5120:  # in what is read as long as the machine is up
                with pytest.raises(ValueError, match="is damaged"):
                    _map(tmp_path / "map")
        (tmp_path / "map").write_bytes(whole)
        with contextlib.closing(_map(tmp_path / "map")) as again:
            assert again.bits == bits

    def test_one_of_the_format_before_is_used_on(self, tmp_path, monkeypatch):
        path, bits = tmp_path / "map", _bits_of_sectors(2)
        monkeypatch.setattr(layermap, "_MAGIC", layermap._EARLIER_MAGIC)
        monkeypatch.setattr(
            layermap.zlib, "crc32", lambda data, before=0, real=zlib.crc32: real(data)
        )
        _map_file(path, bits)
        monkeypatch.undo()
        for block in range(2):
            with contextlib.closing(_map(path)) as found:
                assert found.bits == bits
                assert block not in found
                found.add(block, block)
                found.settle(found.bits)
                bits = found.bits
        assert path.read_bytes().startswith(b"pagemove layers2")

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
            copies = store._copies
            with store._map._lock, copies._lock, copies._copied._lock, store._opening:
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

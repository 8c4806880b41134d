"""What the modes promise: ``r`` reads, ``r+`` goes to the store, ``c`` stays private.

Also sizes that fit nothing, and what follows the end of the store.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedMemory
from pagemove.stores import FileStore
from support import at, child, read
from support.paging import (
    BLOCKS,
    KIB,
    MIB,
    MODES,
    contents,
    expected,
    load,
    paged,
    words,
    wrong_words,
)
from support.selection import few

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_NBYTES = 16 * _BLOCK


class TestRead:
    def test_array_and_buffer_are_read_only(self, file):
        with paged(file(_NBYTES)) as memory:
            array = words(memory)
            assert not array.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
            with memoryview(memory) as view:
                assert view.readonly
                assert view.nbytes == _NBYTES
                with pytest.raises(TypeError):
                    view[0] = 1
            del array

    def test_file_need_not_be_writable(self, file):
        path = file(_NBYTES)
        path.chmod(0o400)
        with paged(path) as memory:
            assert contents(memory) == path.read_bytes()

    def test_flush_does_nothing(self, file):
        with paged(file(_NBYTES)) as memory:
            contents(memory)
            memory.flush()
            assert memory.stats().bytes_written == 0


class TestReadWrite:
    def test_needs_a_writable_store(self, file):
        with FileStore(file(_NBYTES)) as store, pytest.raises(ValueError, match="writ"):
            PagedMemory(store, mode="r+")

    @pytest.mark.parametrize("block", BLOCKS)
    def test_changes_are_in_the_file_after_close(self, file, block):
        path = file(20 * block)

        def change(limit: int | None) -> None:
            with paged(path, "r+", resident_limit=limit, block_size=block) as memory:
                array = words(memory)
                array[7::512] += np.uint64(1)
                del array

        child(change, 4 * block)
        child(change, None)
        wanted = expected(20 * block).copy()
        wanted[7::512] += np.uint64(2)
        assert (np.fromfile(path, np.uint64) == wanted).all()


class TestPrivate:
    @pytest.mark.parametrize("block", BLOCKS)
    def test_changes_survive_eviction_and_never_reach_the_file(self, file, block):
        path = file(20 * block)

        def change() -> str | None:
            with paged(path, "c", resident_limit=4 * block, block_size=block) as memory:
                array = words(memory)
                assert array.flags.writeable
                for step in range(3):
                    array[step::512] += np.uint64(1)
                memory.flush()
                memory.evict()
                for step in range(3):
                    array[step::512] -= np.uint64(1)
                del array
                return wrong_words(words(memory))

        assert child(change) is None
        assert path.read_bytes() == bytes(expected(20 * block))

    def test_file_need_not_be_writable(self, file):
        path = file(_NBYTES)
        path.chmod(0o400)
        with paged(path, "c") as memory:
            array = words(memory)
            array[:] = 0
            del array
        assert path.read_bytes() == bytes(expected(_NBYTES))

    def test_two_of_them_do_not_see_each_other(self, file):
        def change(path: Path) -> list[str | None]:
            how = {"resident_limit": 4 * _BLOCK, "block_size": _BLOCK}
            with paged(path, "c", **how) as one, paged(path, "c", **how) as other:
                words(one)[::64] += np.uint64(1)
                words(other)[::64] += np.uint64(2)
                words(one)[::64] -= np.uint64(1)
                words(other)[::64] -= np.uint64(2)
                return [wrong_words(words(one)), wrong_words(words(other))]

        assert child(change, file(_NBYTES)) == [None, None]


def test_unknown_mode(file):
    for mode in ("w", "rw", "", "a", None):
        with FileStore(file(_NBYTES)) as store, pytest.raises((ValueError, TypeError)):
            PagedMemory(store, mode=mode)


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 12 * KIB, 3 * MIB // 2, -1, 4 * MIB, 2**62])
def test_wrong_block_size(file, size):
    with FileStore(file(_NBYTES)) as store, pytest.raises(ValueError, match="block"):
        PagedMemory(store, block_size=size)


SIZES = [1, 7, 4095, 4096, 4097, 65535, 65536, 65537, 3 * 65536 + 4096, 5 * 65536 + 12345]


@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2 * MIB])
@pytest.mark.parametrize("mode", MODES)
def test_any_size(file, block, mode):
    for nbytes in SIZES[:: few(1, 3)]:
        _try_size(file(nbytes), nbytes, block, mode)


def _try_size(path: Path, nbytes: int, block: int, mode: str) -> None:
    data = path.read_bytes()
    with paged(path, mode, block_size=block, resident_limit=4 * block) as memory:
        assert memory.nbytes == nbytes
        assert contents(memory) == data
        if mode != "r":
            with memoryview(memory) as view:
                view[-1] = data[-1] ^ 0xFF
                assert view[-1] == data[-1] ^ 0xFF
    wanted = data[:-1] + bytes([data[-1] ^ 0xFF]) if mode == "r+" else data
    assert path.read_bytes() == wanted


def _tail(path: Path, mode: str, block: int, nbytes: int) -> bytes:
    with paged(path, mode, block_size=block) as memory:
        rest = -nbytes % block
        first = load(memory.address + nbytes, rest)
        memory.evict()
        # Its pages are the user's as those of a file mapped by mmap are: written, not stored.
        if mode == "r+":
            at(memory.address + nbytes, rest)[:] = 0xAA
            memory.flush()
            memory.evict()
        with memoryview(memory) as view:
            assert bytes(view) == path.read_bytes()
        return first


@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2 * MIB])
@pytest.mark.parametrize("mode", MODES)
def test_zeros_from_the_end_of_the_store_to_the_border_of_the_block(file, block, mode):
    for nbytes in SIZES[:: few(1, 3)]:
        if nbytes % block == 0:
            continue
        path = file(nbytes)
        data = path.read_bytes()
        assert not any(child(_tail, path, mode, block, nbytes))
        assert path.read_bytes() == data
        assert path.stat().st_size == nbytes


def test_an_empty_file_is_refused(file):
    with pytest.raises(ValueError, match="empty"):
        FileStore(file(0))


def test_a_file_with_a_hole_reads_zeros_there(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"here")
    with paged(path, "r+", resident_limit=8 * _BLOCK) as memory, memoryview(memory) as view:
        assert bytes(view[: 4 * MIB]) == bytes(4 * MIB)
        assert bytes(view[32 * MIB : 32 * MIB + 8]) == b"here\0\0\0\0"
        view[48 * MIB] = 1
    assert path.stat().st_size == 64 * MIB
    with path.open("rb") as file:
        file.seek(48 * MIB)
        assert file.read(2) == b"\1\0"


def test_a_region_of_a_tebibyte_opens_and_reads(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        for at_byte in range(0, 1 << 40, 1 << 37):
            file.seek(at_byte + 4096)
            file.write(at_byte.to_bytes(8, "little"))

    def look() -> list[int]:
        with paged(path, "r", resident_limit=MIB) as memory:
            return words(memory)[512 :: (1 << 37) // 8].tolist()

    assert child(look, deadline=30) == list(range(0, 1 << 40, 1 << 37))


NOT_FILES = ["/dev/null", "/dev/zero", "/proc/self/mem", "/tmp", "/proc/self/status"]


@pytest.mark.parametrize("name", NOT_FILES)
def test_what_is_no_file_is_refused(name):
    with pytest.raises((OSError, ValueError)):
        PagedMemory(FileStore(name))


def test_a_pipe_is_refused(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def look() -> None:
        with pytest.raises((OSError, ValueError)):
            PagedMemory(FileStore(path))

    child(look)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        PagedMemory(FileStore(tmp_path / "nothing-here"))


def test_whole_blocks_lie_at_their_alignment(file):
    with paged(file(_NBYTES), block_size=_BLOCK) as memory:
        assert memory.address % PAGE_SIZE == 0
        assert memory.address % _BLOCK == 0
        assert read(memory.address, 64) == bytes(expected(64))

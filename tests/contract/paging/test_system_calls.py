"""Point 1: system calls read and write the region by its plain address.

The kernel's own access faults like that of a program. What it has pinned (O_DIRECT, io_uring)
cannot move, and must be right all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedMemory
from support import child, living_child, wait_for
from support.paging import (
    BLOCKS,
    KIB,
    MIB,
    MODES,
    Struck,
    chill,
    contents,
    expected,
    load,
    make_file,
    paged,
    words,
    wrong_words,
)
from support.system import Ring

pytestmark = pytest.mark.needs("paging", "kernel_faults")

_BLOCK = 64 * KIB
_NBYTES = 24 * _BLOCK
_LIMIT = 8 * _BLOCK


def _readinto(path: Path, other: Path, mode: str, block: int) -> str | None:
    with paged(path, mode, resident_limit=4 * block, block_size=block) as memory:
        with memoryview(memory) as view, other.open("rb", buffering=0) as file:
            assert file.readinto(view) == memory.nbytes
        wrong = wrong_words(words(memory), 1)
    if wrong is None and mode == "r+":
        wrong = wrong_words(np.fromfile(path, np.uint64), 1)
    if wrong is None and mode == "c":
        wrong = wrong_words(np.fromfile(path, np.uint64), 0)
    return wrong


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_read_into_all_of_it_by_one_call(file, mode, block):
    nbytes = 12 * block
    assert child(_readinto, file(nbytes), file(nbytes, 1), mode, block) is None


def _write_out(path: Path, out: Path, mode: str, block: int, cold: bool) -> None:
    if cold:
        chill(path)
    with (
        paged(path, mode, resident_limit=4 * block, block_size=block) as memory,
        memoryview(memory) as view,
        out.open("wb", buffering=0) as file,
    ):
        assert file.write(view) == memory.nbytes


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
def test_write_all_of_it_by_one_call(file, tmp_path, block, cold):
    path = file(12 * block)
    child(_write_out, path, tmp_path / "out", "r", block, cold)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def _unaligned(path: Path, mode: str, block: int, limit: int) -> None:
    """Pieces that begin anywhere: a page of the file comes from two blocks, needed at once."""
    pieces = [(100, block), (100, 3 * block + 8), (block - 8, 16), (block - 8, 3 * block)]
    pieces += [(5 * block + 72, 4 * block), (64, 20 * block)]
    data = path.read_bytes()
    with paged(path, mode, resident_limit=limit * block, block_size=block) as memory:
        out = os.memfd_create("out")
        with memoryview(memory) as view:
            for first, count in pieces * 3:
                assert os.pwrite(out, view[first : first + count], 0) == count
                assert os.pread(out, count, 0) == data[first : first + count]
                if mode != "r":
                    assert os.preadv(out, [view[first : first + count]], 0) == count


@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK])
@pytest.mark.parametrize("limit", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_unaligned_pieces(file, block, limit, mode):
    child(_unaligned, file(24 * block), mode, block, limit, deadline=10)


def _scattered(path: Path, out: Path, mode: str, limit: int, count: int) -> None:
    """Vectors of pieces in many blocks, read by one call and written by another.

    The kernel brings in the pieces of a page of the file one after another, copies those that are
    still there at the end, and begins again: it comes forward if now and then the first one is.
    """
    with paged(path, mode, resident_limit=limit * _BLOCK, block_size=_BLOCK) as memory:
        fd = os.open(out, os.O_RDWR | os.O_CREAT, 0o600)
        view = memoryview(memory)
        pieces = [view[at + 8 : at + 32] for at in range(0, count * _BLOCK, _BLOCK)][::-1]
        data = path.read_bytes()
        wanted = b"".join(data[at + 8 : at + 32] for at in range(0, count * _BLOCK, _BLOCK)[::-1])
        assert os.writev(fd, pieces) == len(wanted)
        assert os.pread(fd, len(wanted), 0) == wanted
        if mode != "r":
            os.pwrite(fd, wanted[::-1], 0)
            assert os.preadv(fd, pieces, 0) == len(wanted)
            assert b"".join(map(bytes, pieces)) == wanted[::-1]
        os.close(fd)
        for piece in pieces:
            piece.release()
        view.release()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("limit", "count"), [(4, 3), (4, 4), (4, 6), (8, 12), (16, 24), (32, 64)])
def test_vectors_of_pieces_in_many_blocks(file, tmp_path, mode, limit, count):
    child(_scattered, file(count * _BLOCK), tmp_path / "out", mode, limit, count)


def _through_a_pipe(path: Path) -> bytes:
    with paged(path, "r", resident_limit=4 * _BLOCK, block_size=_BLOCK) as memory:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        found = b""
        with memoryview(memory) as view:
            while len(found) < memory.nbytes:
                with contextlib.suppress(BlockingIOError):
                    os.write(writing, view[len(found) :])
                found += os.read(reading, 1 << 20)
        return found


def test_through_a_pipe(file):
    path = file(_NBYTES)
    assert child(_through_a_pipe, path) == path.read_bytes()


# O_DIRECT


def _direct(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {path.parent}: {error.strerror}")


def _direct_read(path: Path, fd: int, mode: str, block: int, piece: int) -> str | None:
    with paged(path, mode, resident_limit=4 * block, block_size=block) as memory:
        with memoryview(memory) as view:
            for at in range(0, memory.nbytes, piece):
                assert os.preadv(fd, [view[at : at + piece]], at) == piece
        wrong = wrong_words(words(memory), 1)
    if wrong is None and mode == "r+":
        wrong = wrong_words(np.fromfile(path, np.uint64), 1)
    return wrong


@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2 * MIB])
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.needs("paging_by_move")  # mremap does not see pinned pages
def test_o_direct_into_it(file, mode, block):
    nbytes = 12 * block
    fd = _direct(file(nbytes, 1))
    try:
        assert child(_direct_read, file(nbytes), fd, mode, block, block) is None
        assert child(_direct_read, file(nbytes), fd, mode, block, 4096) is None
    finally:
        os.close(fd)


def _direct_write(path: Path, fd: int, mode: str, block: int, piece: int) -> None:
    with (
        paged(path, mode, resident_limit=4 * block, block_size=block) as memory,
        memoryview(memory) as view,
    ):
        for at in range(0, memory.nbytes, piece):
            assert os.pwritev(fd, [view[at : at + piece]], at) == piece


@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2 * MIB])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_o_direct_out_of_it(file, tmp_path, mode, block):
    path, out = file(12 * block), make_file(tmp_path / "out", 12 * block, 1)
    fd = _direct(out)
    try:
        child(_direct_write, path, fd, mode, block, block)
        assert out.read_bytes() == path.read_bytes()
    finally:
        os.close(fd)


def readable(memory: PagedMemory) -> bool:
    """Return whether no block is poisoned."""
    try:
        for at in range(0, memory.nbytes, memory.block_size):
            load(memory.address + at)
    except Struck:
        return False
    return True


def _direct_too_much(path: Path, fd: int, writing: bool) -> tuple[str, str | None]:
    """More by one call than may be resident: all of it would be pinned at once."""
    mode = "r" if writing else "r+"
    with paged(path, mode, resident_limit=_LIMIT, block_size=_BLOCK, store_timeout=1.0) as memory:
        with memoryview(memory) as view:
            try:
                done = (os.pwritev if writing else os.preadv)(fd, [view], 0)
                outcome = "all" if done == memory.nbytes else "some"
            except OSError as error:
                outcome, done = f"errno {error.errno}", 0
        # Blocks that had no place come back by themselves.
        wait_for(lambda: readable(memory), 5.0)
        array = words(memory)
        if writing:
            wrong = wrong_words(array)
        else:
            split = done // 8
            wrong = wrong_words(array[:split], 1)
            rest = array[split:]
            # What the call has not reported may be either, page by page.
            both = (rest == expected(_NBYTES)[split:]) | (rest == expected(_NBYTES, 1)[split:])
            wrong = wrong or (None if both.all() else "neither old nor new")
            del rest, both
        del array
    return outcome, wrong


@pytest.mark.parametrize("writing", [False, True], ids=["into", "out of"])
@pytest.mark.needs("paging_by_move")  # mremap does not see pinned pages
def test_o_direct_beyond_the_limit_does_not_hang_nor_invent(file, writing):
    fd = _direct(file(_NBYTES, 1))
    try:
        outcome, wrong = child(_direct_too_much, file(_NBYTES), fd, writing, deadline=30)
    finally:
        os.close(fd)
    assert wrong is None
    assert outcome in ("all", "some", "errno 14", "errno 12")


def _pinned(path: Path, mode: str, blocks: int) -> str | None:
    with paged(path, mode, resident_limit=_LIMIT, block_size=_BLOCK, store_timeout=1.0) as memory:
        array = words(memory)
        half = len(array) // 2
        with Ring() as ring:
            ring.register(memory.address, blocks * _BLOCK)
            for _ in range(3):
                wrong = wrong_words(array[half:], first=half)
                assert wrong is None, wrong
            array[: blocks * _BLOCK // 8] += np.uint64(1)
            # They may say that they cannot while somebody else's I/O may change the pages.
            for call in (memory.flush, memory.evict, lambda: memory.prefetch(wait=True)):
                with contextlib.suppress(OSError):
                    call()
            shift = np.uint64(1)
            seen = array[: blocks * _BLOCK // 8] - shift
            assert wrong_words(seen) is None
            ring.unregister()
        memory.evict()
        wrong = wrong_words(array[:half] - shift * (np.arange(half) < blocks * _BLOCK // 8))
        del array, seen
    if mode == "r+" and wrong is None:
        found = np.fromfile(path, np.uint64)
        found[: blocks * _BLOCK // 8] -= np.uint64(1)
        wrong = wrong_words(found)
    return wrong


@pytest.mark.needs("io_uring", "paging_by_move")  # mremap does not see pinned pages
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize("blocks", [1, 4])
def test_pinned_blocks_of_another_thread(file, mode, blocks):
    assert child(_pinned, file(_NBYTES), mode, blocks, deadline=30) is None


def _pinned_to_write(path: Path) -> None:
    with (
        paged(path, "r", resident_limit=_LIMIT, block_size=_BLOCK) as memory,
        Ring() as ring,
        pytest.raises(OSError, match="Bad address"),
    ):
        ring.register(memory.address, _BLOCK)


@pytest.mark.needs("io_uring", "kernel_faults")
def test_a_read_only_region_cannot_be_pinned_for_a_device_to_write_into(file):
    child(_pinned_to_write, file(_NBYTES))


# Other processes, and two regions in one call.

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _process_vm(name: str, pid: int, remote: int, buffer: int, nbytes: int) -> int:
    local, there = _Vector(buffer, nbytes), _Vector(remote, nbytes)
    call = getattr(_libc, name)
    call.restype = ctypes.c_ssize_t
    return int(
        call(
            pid,
            ctypes.byref(local),
            ctypes.c_ulong(1),
            ctypes.byref(there),
            ctypes.c_ulong(1),
            ctypes.c_ulong(0),
        )
    )


_kept: list[object] = []


def _open_and_keep(path: Path) -> tuple[int, int]:
    context = paged(path, "r+", resident_limit=_LIMIT, block_size=_BLOCK)
    memory = context.__enter__()
    _kept.extend([context, memory])
    return os.getpid(), memory.address


def _close_kept() -> None:
    context, _ = _kept
    context.__exit__(None, None, None)


@pytest.mark.needs("paging_by_move")  # mremap does not see pinned pages
def test_another_process_reads_and_writes_it(file):
    path = file(_NBYTES)
    piece = _LIMIT // 2  # the kernel pins all of it at once
    with living_child(_open_and_keep, path) as one:
        pid, address = one.result()
        buffer = mmap.mmap(-1, _NBYTES)
        local = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        for at in range(0, _NBYTES, piece):
            done = _process_vm("process_vm_readv", pid, address + at, local + at, piece)
            assert done == piece
        assert buffer[:] == path.read_bytes()
        buffer[:] = bytes(expected(_NBYTES, 1))
        for at in range(0, _NBYTES, piece):
            done = _process_vm("process_vm_writev", pid, address + at, local + at, piece)
            assert done == piece
        one.run(_close_kept)
        one.end()
    assert wrong_words(np.fromfile(path, np.uint64), 1) is None


def _from_region_to_region(path: Path, other: Path) -> str | None:
    """The kernel copies from one region into another: each page of either may fault."""
    how = {"resident_limit": _LIMIT, "block_size": _BLOCK}
    with paged(path, "r", **how) as source, paged(other, "r+", **how) as target:
        for at in range(0, source.nbytes, 4 * _BLOCK):
            there, here = source.address + at, target.address + at
            done = _process_vm("process_vm_readv", os.getpid(), there, here, 4 * _BLOCK)
            assert done == 4 * _BLOCK
        assert contents(source) == contents(target)
    return wrong_words(np.fromfile(other, np.uint64))


@pytest.mark.needs("paging_by_move")  # mremap does not see pinned pages
def test_from_one_region_into_another_by_one_call(file):
    assert child(_from_region_to_region, file(_NBYTES), file(_NBYTES, 1)) is None

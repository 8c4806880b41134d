"""`create_array`: new files, whole or not there, whose holes are not read."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, StoreError
from pagemove.stores import FileStore

pytestmark = pytest.mark.needs("paging")

BLOCK = 65536
# Of `stat -f`: those that holes.c knows.
KNOWN = {"ef53", "58465342", "9123683e", "f2f52010", "ca451a4e", "1021994"}
LEFT = ".pagemove-*"


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Make a folder on a file system whose holes are known."""
    with tempfile.TemporaryDirectory(dir=tmp_path if request.param == "disk" else "/dev/shm") as at:
        kind = subprocess.run(["stat", "-f", "-c", "%t", at], capture_output=True, text=True)
        if kind.stdout.strip() not in KNOWN:
            pytest.skip(f"where holes are is not asked of this file system ({kind.stdout.strip()})")
        yield Path(at)


KINDS: list[tuple[Any, Any, str]] = [
    ((1000, 37), "f4", "C"),
    ((3, 5, 700), ">i2", "F"),
    (12345, "c16", "C"),
    ([7], "S11", "F"),
    ((), "f8", "C"),
    ((0, 4), "f8", "C"),
    ((50,), [("a", "<i2"), ("b", "<f8", (2, 3))], "C"),
    ((50,), [("größe", "<i2"), ("длина", "<f8")], "C"),
    ((50,), [(f"column_{number}", "<i2") for number in range(3000)], "C"),
    ((4,), ("i4", (2, 3)), "C"),
    ((40,), "M8[ms]", "C"),
]


@pytest.mark.parametrize(("shape", "dtype", "order"), KINDS, ids=[str(kind)[:40] for kind in KINDS])
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_numpy_reads_what_was_written(tmp_path, shape, dtype, order):
    path = tmp_path / "made.npy"
    array = pagemove.create_array(path, shape, dtype, order=order, resident_limit="256KiB")
    assert type(array) is pagemove.PagedArray
    assert array.flags.writeable
    assert (array.filename, array.mode) == (path, "r+")
    theirs = np.load(path, max_header_size=1 << 20)
    fortran = order == "F"
    plain = np.zeros(shape, dtype, order=order)
    assert (theirs.dtype, theirs.shape) == (plain.dtype, plain.shape)
    assert theirs.flags.f_contiguous == plain.flags.f_contiguous
    assert theirs.tobytes() == plain.tobytes()
    values = np.random.default_rng(1).integers(0, 100, plain.nbytes).astype("u1")
    new = np.ndarray(plain.shape, plain.dtype, values.tobytes(), order="F" if fortran else "C")
    array[...] = new
    array.flush()
    assert np.load(path, max_header_size=1 << 20).tobytes() == new.tobytes()
    assert array.offset == path.stat().st_size - new.nbytes
    assert array.offset % 64 == 0
    again = pagemove.open_array(path)
    assert (again.dtype, again.shape) == (plain.dtype, plain.shape)


def test_another_name_has_the_items_alone(tmp_path):
    path = tmp_path / "made.bin"
    array = pagemove.create_array(str(path), (30, 40), "<u2", order="F")
    array[:] = np.arange(1200).reshape(30, 40)
    array.flush()
    assert np.fromfile(path, "<u2").tobytes() == array.tobytes("F")
    assert array.offset == 0
    # There is a byte to be paged all the same.
    nothing = pagemove.create_array(f"file://{tmp_path}/nothing", 0, "f8")
    assert nothing.shape == (0,)
    assert (tmp_path / "nothing").read_bytes() == b"\0"


def test_holes_are_not_read_before_they_are_written(folder):
    path = folder / "made.npy"
    array = pagemove.create_array(path, (64 << 20) // 8, "i8", resident_limit="2MiB")
    assert path.stat().st_blocks * 512 <= 2 * BLOCK
    # The first block has the header.
    assert not array[BLOCK // 8 :: BLOCK // 8].any()
    # In no order: by the event loop, not ahead.
    places = np.random.default_rng(2).permutation(1022)[:300] * (BLOCK // 8) + BLOCK // 8
    array[places] = places
    array.flush()
    assert array.region.stats().bytes_read == 0
    array.region.evict()
    assert array[places].tolist() == places.tolist()
    assert array.region.stats().bytes_read >= 300 * BLOCK
    assert np.flatnonzero(np.load(path, mmap_mode="r")).tolist() == sorted(places.tolist())


@pytest.mark.parametrize("block_size", [4096, BLOCK])
def test_islands_between_holes_are_read_and_nothing_else(folder, block_size):
    path = folder / "islands"
    whole = np.zeros(16 << 20, np.uint8)
    with path.open("wb") as file:
        file.truncate(len(whole))
        for start in np.random.default_rng(3).integers(0, len(whole) - 9000, 40).tolist():
            whole[start : start + 9000] = 1 + start % 200
            os.pwrite(file.fileno(), whole[start : start + 9000], start)
    with FileStore(path, writable=True) as store:
        region = pagemove.PagedMemory(
            store, mode="r+", block_size=block_size, resident_limit=8 << 20
        )
    with region:
        array = region.asarray(np.uint8)
        assert np.array_equal(array, whole)
        assert np.array_equal(array[::-4097], whole[::-4097])
        data = int(whole.reshape(-1, block_size).any(axis=1).sum()) * block_size
        assert 0 < region.stats().bytes_read <= 2 * data < len(whole)
        del array


def test_what_others_wrote_into_a_hole_is_seen(folder):
    path = folder / "made"
    array = pagemove.create_array(path, 100 * BLOCK, "u1")
    assert array[0] == 0
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"x" * 10, 50 * BLOCK)
    assert bytes(array[50 * BLOCK : 50 * BLOCK + 11]) == b"x" * 10 + b"\0"


def test_a_hole_that_was_cut_off_is_an_error(folder):
    path = folder / "made"
    array = pagemove.create_array(path, 100 * BLOCK, "u1", block_size=BLOCK, store_timeout=0)
    os.truncate(path, 50 * BLOCK)
    array[: 50 * BLOCK].prefetch(wait=True)
    with pytest.raises(StoreError, match="fewer bytes than there should be"):
        array[60 * BLOCK : 61 * BLOCK].prefetch(wait=True)
    os.truncate(path, 100 * BLOCK)


def test_fill_is_written_and_not_read(tmp_path):
    path = tmp_path / "made.npy"
    array = pagemove.create_array(path, (3, 1 << 20), "f4", fill=2.5, resident_limit="1MiB")
    assert array.region.stats().bytes_read == 0
    theirs = np.load(path, mmap_mode="r")
    assert theirs.min() == theirs.max() == 2.5
    assert array.region.stats().bytes_read == 0
    record = pagemove.create_array(
        tmp_path / "b.npy", 70_000, [("a", "<i2"), ("b", "<f8")], fill=(3, 4.5)
    )
    assert (record["a"].min(), record["b"].max(), record[-1].tolist()) == (3, 4.5, (3, 4.5))
    zero = pagemove.create_array(tmp_path / "c", 1 << 20, "f8", fill=0)
    assert (tmp_path / "c").stat().st_blocks == 0
    assert not zero.any()
    with pytest.raises(OverflowError):
        pagemove.create_array(path, 10, "u1", fill=300)
    with pytest.raises(ValueError, match="not an item of uint8"):
        pagemove.create_array(path, 10, "u1", fill=[1, 2])


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dtype": object}, TypeError, "Python objects"),
    ({"dtype": [("a", "O")]}, TypeError, "Python objects"),
    ({"dtype": "S"}, ValueError, "no size"),
    ({"shape": (3, -1)}, ValueError, "negative"),
    ({"shape": (2**40, 2**40)}, ValueError, "more than a file"),
    ({"shape": 2**60}, ValueError, "more than a file"),
    ({"shape": 2.5}, TypeError, "float"),
    ({"order": "A"}, ValueError, "order must be 'C' or 'F', not 'A'.*Fortran-contiguous, else 'C'"),
    ({"order": "k"}, ValueError, "order must be 'C' or 'F', not 'k'.*Fortran-contiguous, else 'C'"),
    ({"mode": "r"}, TypeError, "always writeable"),
    ({"resident_limit": "1KiB"}, ValueError, "four blocks"),
    ({"path": "s3://bucket/x.npy"}, ValueError, "not a path"),
    ({"path": np.zeros(3)}, TypeError, "in memory already"),
    ({"path": "/dev/null"}, ValueError, "not an ordinary file"),
    ({"path": "/"}, IsADirectoryError, "directory"),
    ({"path": "/no/such/folder/x.npy"}, FileNotFoundError, "x.npy"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED, ids=str)
def test_what_is_refused_leaves_everything_as_it_was(tmp_path, arguments, error, message):
    path = tmp_path / "made.npy"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        pagemove.create_array(**{"path": path, "shape": 10, "dtype": "f8"} | arguments)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [
        ("made.npy", b"before")
    ]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "ftruncate"])
@pytest.mark.parametrize("before", [b"before", None])
def test_a_failure_leaves_no_new_file(tmp_path, monkeypatch, call, before):
    path = tmp_path / "made.npy"
    if before is not None:
        path.write_bytes(before)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left") as caught:
            pagemove.create_array(path, 10, "f8", fill=1)
    assert caught.value.errno == errno.ENOSPC
    found = [each.read_bytes() for each in tmp_path.iterdir() if each.stat().st_size]
    assert found == ([] if before is None else [before])


KILLED = """
import os, signal, sys
import pagemove
from pagemove.paging import create

def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "fill":
    pieces = create._Layout.pieces
    def some(self):
        for number, piece in enumerate(pieces(self)):
            if number == 3:
                killed()
            yield piece
    create._Layout.pieces = some
else:
    setattr(os, sys.argv[2], killed)
pagemove.create_array(sys.argv[1], 1 << 20, "f8", fill=1.5)
"""


@pytest.mark.parametrize("where", ["fill", "fsync", "rename"])
def test_killed_it_leaves_no_file_of_that_name(tmp_path, where):
    path = tmp_path / "made.npy"
    done = subprocess.run([sys.executable, "-c", KILLED, path, where], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    (left,) = tmp_path.glob(LEFT)
    begins = left.read_bytes()[:6]
    assert begins == (b"\0" * 6 if where == "fill" else b"\x93NUMPY")


def test_who_reads_the_old_file_keeps_it(tmp_path):
    path = tmp_path / "made.npy"
    np.save(path, np.arange(100_000))
    path.chmod(0o640)
    reader = pagemove.open_array(path, resident_limit="256KiB")
    array = pagemove.create_array(path, 10, "f4")
    assert reader.tolist() == list(range(100_000))
    assert np.load(path).tolist() == [0.0] * 10
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not list(tmp_path.glob(LEFT))
    with pytest.raises(BlockingIOError, match="another store or region of this process") as caught:
        pagemove.create_array(path, 20, "f4")
    assert caught.value.filename == str(path)
    del array, reader, caught
    assert pagemove.create_array(path, 20, "f4").shape == (20,)


def test_links(tmp_path):
    real, link, hard = (tmp_path / name for name in ("real", "link.npy", "hard"))
    link.symlink_to(real)
    pagemove.create_array(link, 10, "f4")[:] = 1
    assert link.is_symlink()
    assert np.load(real).tolist() == [1.0] * 10
    os.link(real, hard)
    inode = hard.stat().st_ino
    pagemove.create_array(link, 5, "f4", fill=3)[1] = 2
    assert np.load(hard).tolist() == [3.0, 2.0, 3.0, 3.0, 3.0]
    assert real.stat().st_ino == inode
    # What is made in place is empty if it fails.
    with pytest.raises(ValueError, match="four blocks"):
        pagemove.create_array(link, 5, "f4", resident_limit=1)
    assert hard.read_bytes() == b""


def cached(path: Path) -> int:
    """Return how many pages of a file the page cache has."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
        data = np.frombuffer(whole, np.uint8)
        found = np.zeros(-(-len(data) // PAGE_SIZE), np.uint8)
        at, result = ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(found.ctypes.data)
        assert libc.mincore(at, ctypes.c_size_t(len(data)), result) == 0
        del data
    return int((found & 1).sum())


def takes_direct_writes(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    return subprocess.check_output(["stat", "-f", "-c", "%T", path]).strip() != b"tmpfs"


@pytest.mark.parametrize("how", ["create_array", "memmap"])
@pytest.mark.parametrize("block", [4096, 65536, 2 << 20])
def test_what_is_larger_than_its_limit_leaves_no_copy_in_the_page_cache(
    tmp_path: Path, how: str, block: int
) -> None:
    """And is complete, to a last block that is no multiple of anything."""
    path, nbytes = tmp_path / "new.bin", (32 << 20) + 12345
    values = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
    paging: Any = {"resident_limit": "8MiB", "block_size": block}
    if how == "memmap":
        array: Any = pagemove.memmap(path, "u1", "w+", shape=nbytes, **paging)
    else:
        array = pagemove.create_array(path, nbytes, "u1", **paging)
    for first in range(0, nbytes, 1 << 20):
        array[first : first + (1 << 20)] = values[first : first + (1 << 20)]
    array[::99991] ^= 1  # small changes all over it, of what was written
    values[::99991] ^= 1
    array.flush()
    left = cached(path)
    assert (np.asarray(array) == values).all()
    array.close()
    assert (np.fromfile(path, np.uint8) == values).all()
    if block > 4096 and takes_direct_writes(path):
        # The last block, and what was read again.
        assert left * PAGE_SIZE < nbytes // 4 or block == 65536


def test_what_fits_its_limit_stays_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "new.npy"
    array = pagemove.create_array(path, 1 << 20, "f8", resident_limit="32MiB")
    array[:] = 1.5
    array.close()
    assert cached(path) * PAGE_SIZE > array.nbytes // 2

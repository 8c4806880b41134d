"""`save`, `tofile` and pickles: what NumPy writes, piece by piece, for whoever may nothing else."""

from __future__ import annotations

import errno
import io
import os
import pickle
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import PagedArray, open_array, pinned, reference, region_of, save
from pagemove._native import pager
from pagemove.errors import StoreError
from support.children import child
from support.paging import KIB, MIB, Peak
from support.selection import few

pytestmark = pytest.mark.needs("paging")

_PADDED = np.dtype([("a", "u1"), ("b", "<f8"), ("c", "S3")], align=True)
_NUMBERS = np.arange(60_000, dtype=np.float64).reshape(100, 20, 30)

ARRAYS: dict[str, npt.NDArray[Any]] = {
    "one dimension": np.arange(200_000, dtype=np.int64),
    "three": _NUMBERS,
    "fortran": np.asfortranarray(_NUMBERS),
    "big endian": _NUMBERS.astype(">f4"),
    "records": np.ones(20_000, [("a", "u1"), ("b", "<f8"), ("c", "S3")]),
    "dates": np.arange(50_000).astype("M8[s]"),
    "text": np.arange(20_000).astype("U7"),
    "names in another script": np.ones(5000, [("größe", "<i4"), ("名", "<i4")]),
    "one item": np.array(7.5),
    "nothing": np.empty((3, 0, 2), np.int16),
}
VIEWS = {
    "whole": lambda a: a,
    "turned": lambda a: a.T,
    "strided": lambda a: a[1::3] if a.ndim else a,
    "backward": lambda a: a[..., ::-1] if a.ndim else a,
}


@pytest.fixture(autouse=True)
def ordinary() -> Iterator[None]:
    """Do as for a user without privileges: nobody serves the faults of system calls."""
    pager.set_kernel_faults(False)
    yield
    pager.set_kernel_faults(True)


def opened(path: Path, array: npt.NDArray[Any], mode: Any = "r") -> PagedArray:
    np.save(path, array)
    # As many blocks as have to be, so that none of what is read at first stays for the end.
    found = open_array(path, mode=mode, resident_limit=4 * 4096, block_size=4096, prefetch="off")
    assert not region_of(found).kernel_faults
    return found


def saved(array: npt.NDArray[Any]) -> bytes:
    """Return what NumPy writes."""
    with tempfile.TemporaryFile() as file:
        np.save(file, array)
        file.seek(0)
        return file.read()


@pytest.mark.filterwarnings("ignore:Stored array in format")
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("name", ARRAYS)
class TestWhatNumpyWrites:
    def test_by_save(self, tmp_path, name, view):
        array = view(opened(tmp_path / "file.npy", ARRAYS[name]))
        save(tmp_path / "saved", array)
        assert (tmp_path / "saved.npy").read_bytes() == saved(view(np.load(tmp_path / "file.npy")))

    def test_by_tofile(self, tmp_path, name, view):
        array = view(opened(tmp_path / "file.npy", ARRAYS[name]))
        array.tofile(tmp_path / "raw")
        view(np.load(tmp_path / "file.npy")).tofile(tmp_path / "numpys")
        assert (tmp_path / "raw").read_bytes() == (tmp_path / "numpys").read_bytes()

    def test_by_numpys_save(self, tmp_path, name, view):
        array = view(opened(tmp_path / "file.npy", ARRAYS[name]))
        np.save(tmp_path / "saved.npy", array)
        assert (tmp_path / "saved.npy").read_bytes() == saved(view(np.load(tmp_path / "file.npy")))

    def test_by_pickle(self, tmp_path, name, view):
        array = view(opened(tmp_path / "file.npy", ARRAYS[name]))
        expected = view(np.load(tmp_path / "file.npy"))
        # The first and the last have all there is to differ in: copies, and buffers out of band.
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1, few(1, pickle.HIGHEST_PROTOCOL - 2)):
            with (tmp_path / "pickle").open("wb") as file:
                pickle.dump(reference(array, copy=True), file, protocol)
            found = pickle.loads((tmp_path / "pickle").read_bytes()).open()
            assert type(found) is np.ndarray
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            numpys = pickle.loads(pickle.dumps(expected, protocol))
            assert found.flags.f_contiguous == numpys.flags.f_contiguous
            assert found.flags.writeable or not found.size
            assert found.tobytes("A") == expected.tobytes("A")
        array.dump(tmp_path / "dumped")
        for dumped in (array.dumps(), (tmp_path / "dumped").read_bytes()):
            found = pickle.loads(dumped)
            assert type(found) is np.ndarray
            assert found.tobytes("A") == expected.tobytes("A")


class TestSave:
    @pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
    def test_what_lies_between_fields_is_kept(self, tmp_path, view):
        """NumPy writes what its buffer has held before, where it has to copy."""
        records = np.frombuffer(np.random.default_rng(1).bytes(24 * 20_000), _PADDED)
        array = view(opened(tmp_path / "file.npy", records))
        expected = view(records.view("V24")).tobytes()
        array.tofile(tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == expected
        save(tmp_path / "saved.npy", array)
        assert (tmp_path / "saved.npy").read_bytes().endswith(expected)
        assert pickle.loads(array.dumps()).tobytes() == expected

    def test_plain_arrays_and_what_becomes_one(self, tmp_path):
        for thing in ([[1, 2], [3, 4]], 5, np.arange(10)[::2], np.ma.array([1, 2])):
            save(tmp_path / "saved.npy", thing)
            assert (tmp_path / "saved.npy").read_bytes() == saved(np.asanyarray(thing))

    def test_objects_are_pickled_or_refused(self, tmp_path):
        things = np.array([{"a": 1}, None])
        save(tmp_path / "saved.npy", things)
        assert np.load(tmp_path / "saved.npy", allow_pickle=True)[0] == {"a": 1}
        with pytest.raises(ValueError, match="Object arrays cannot be saved"):
            save(tmp_path / "other.npy", things, allow_pickle=False)
        assert os.listdir(tmp_path) == ["saved.npy"]

    def test_a_header_that_is_long(self, tmp_path):
        many = np.ones(3, [(f"column-{n:05}", "u1") for n in range(4000)])
        save(tmp_path / "saved.npy", many)
        with pytest.warns(UserWarning, match="format 2.0"):
            expected = saved(many)
        assert (tmp_path / "saved.npy").read_bytes() == expected

    def test_to_a_file_object_that_takes_little_at_a_time(self, tmp_path):
        array = opened(tmp_path / "file.npy", _NUMBERS)

        class Slow(io.RawIOBase):
            def __init__(self) -> None:
                self.data = bytearray()

            def write(self, data: Any) -> int:
                self.data += data[:70_000]
                return min(len(data), 70_000)

        slow = Slow()
        save(slow, array)  # type: ignore[arg-type]
        assert bytes(slow.data) == saved(_NUMBERS)

    def test_to_the_file_it_is_paged_from(self, tmp_path):
        path = tmp_path / "file.npy"
        array = opened(path, _NUMBERS)
        save(path, array[::2])
        assert (np.load(path) == _NUMBERS[::2]).all()
        assert (array == _NUMBERS).all()

    def test_the_name_keeps_its_mode_and_a_link_its_target(self, tmp_path):
        target, link = tmp_path / "target.npy", tmp_path / "link.npy"
        target.write_bytes(b"old")
        target.chmod(0o640)
        link.symlink_to(target)
        save(link, _NUMBERS)
        assert link.is_symlink()
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert target.read_bytes() == saved(_NUMBERS)
        assert sorted(os.listdir(tmp_path)) == ["link.npy", "target.npy"]

    def test_one_of_several_names_is_written_in_place(self, tmp_path):
        path, other = tmp_path / "a.npy", tmp_path / "b.npy"
        array = opened(path, _NUMBERS)
        os.link(path, other)
        with pytest.raises(ValueError, match="is the file that the array is paged from"):
            save(path, array)
        assert (array == _NUMBERS).all()
        save(path, _NUMBERS[0])
        assert other.read_bytes() == saved(_NUMBERS[0])

    def test_what_fails_leaves_the_old_file_and_says_how_far_it_came(self, tmp_path):
        path = tmp_path / "saved.npy"
        path.write_bytes(b"old")

        class Full(io.BytesIO):
            def write(self, data: Any) -> int:
                if self.tell() > 500_000:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(data)

        array = opened(tmp_path / "file.npy", np.zeros(4 * MIB, np.uint8))
        with pytest.raises(OSError, match="No space") as caught:
            save(Full(), array)
        assert caught.value.__notes__ == ["1 MiB of the 4 MiB of the array were written before"]
        with pytest.raises(ValueError, match="Object arrays"):
            save(path, np.array([None]), allow_pickle=False)
        assert path.read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["file.npy", "saved.npy"]
        with pytest.raises(FileNotFoundError, match="nowhere"):
            save(tmp_path / "nowhere" / "x.npy", array)


def of_a_file_cut_short(folder: Path, name: str, limit: str) -> tuple[str, list[str]]:
    """Have it written after the file has lost a half; return the error, and what is there."""
    np.arange(500_000).tofile(folder / "numbers")
    array = open_array(
        folder / "numbers", dtype=np.int64, resident_limit=limit, block_size=4096, store_timeout=0.1
    )
    os.truncate(folder / "numbers", 2_000_000)
    ways = {
        "save": lambda: save(folder / "saved.npy", array),
        "tofile": lambda: array.tofile(folder / "saved"),
        "scattered": lambda: array.reshape(2, -1).T.tofile(folder / "saved"),
    }
    try:
        ways[name]()
    except StoreError as error:
        return str(error), os.listdir(folder)
    raise AssertionError("it was saved")


@pytest.mark.parametrize("limit", ["16KiB", "64MiB"])
@pytest.mark.parametrize("name", ["save", "tofile", "scattered"])
def test_a_block_that_cannot_be_read_is_an_exception(tmp_path, name, limit):
    """And not SIGBUS, which left a part of the new file."""
    message, files = child(of_a_file_cut_short, tmp_path, name, limit)
    assert f"cannot read {tmp_path / 'numbers'}" in message
    assert files == ["numbers"]


class TestMemory:
    """However large the array, a piece of it is in memory, and the limit holds."""

    @pytest.mark.parametrize("way", ["save", "numpy", "tofile", "pickle"])
    def test_is_that_of_a_piece(self, tmp_path, way):
        path = tmp_path / "file.npy"
        np.save(path, np.arange(3 * MIB, dtype=np.int64))
        array = open_array(path, resident_limit="4MiB")
        memory = region_of(array)
        with Peak() as peak, (tmp_path / "out").open("wb") as out:
            if way == "save":
                save(out, array)
            elif way == "numpy":
                np.save(out, array)
            elif way == "tofile":
                array.tofile(out)
            else:
                array.dump(out)
        assert (tmp_path / "out").stat().st_size >= array.nbytes
        assert peak.last <= 8 * MIB
        assert memory.stats().pinned_nbytes == 0
        assert not memory.stats().errors


class TestArrays:
    def test_views_are_paged_and_results_plain(self, tmp_path):
        array = opened(tmp_path / "file.npy", _NUMBERS, "c")
        for view in (array[1:], array.T, array.reshape(-1), array[..., None], array.ravel()):
            assert type(view) is PagedArray
            assert view.region is region_of(array)
        results = [
            array + 1, np.sin(array), array.sum(axis=0), array[array > 5], array[[1, 2]],
            array.copy(), array.flatten(), array.astype("f4"), np.concatenate([array, array]),
        ]  # fmt: skip
        for result in results:
            assert type(result) is np.ndarray
        assert isinstance(array.sum(), np.float64)
        assert isinstance(array[0, 0, 0], np.float64)
        array += 1
        assert type(array) is PagedArray
        assert np.add(array, 1, out=array) is array
        assert (array == _NUMBERS + 2).all()

    def test_out_of_band_it_is_not_copied(self, tmp_path):
        array = opened(tmp_path / "file.npy", _NUMBERS, "c")
        array = open_array(tmp_path / "file.npy", mode="c", resident_limit="1MiB")
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(reference(array, copy=True), protocol=5, buffer_callback=buffers.append)
        assert len(data) < 1000
        assert np.shares_memory(np.frombuffer(buffers[0], "u1"), array)
        assert (pickle.loads(data, buffers=buffers).open() == _NUMBERS).all()

    def test_where_others_have_pinned_all_it_is_copied(self, tmp_path):
        array = opened(tmp_path / "file.npy", _NUMBERS)
        array = open_array(tmp_path / "file.npy", resident_limit=64 * KIB, block_size=4096)
        with pinned(array.reshape(-1)[: 12 * 512 - 16]), (tmp_path / "out").open("wb") as out:
            array.dump(out)
        assert (pickle.loads((tmp_path / "out").read_bytes()) == _NUMBERS).all()

    @pytest.mark.parametrize("pickler", [pickle.Pickler, pickle._Pickler], ids=["C", "Python"])
    def test_pieces_stay_until_they_are_pickled(self, tmp_path, pickler):
        """Both take more items of a list before they write the first, whose blocks may leave."""
        array = opened(tmp_path / "file.npy", np.arange(400_001, dtype=np.uint8))
        array = open_array(tmp_path / "file.npy", resident_limit="256KiB", block_size=4096)
        for _ in range(5):
            with (tmp_path / "out").open("wb", buffering=0) as out:
                parts = [array[::2], array, array[:1], array[1:2], array[1:]]
                pickler(out, 5).dump([reference(part, copy=True) for part in parts])
        found = [each.open() for each in pickle.loads((tmp_path / "out").read_bytes())]
        assert (found[1] == array).all()
        assert (found[4] == array[1:]).all()
        assert region_of(array).stats().pinned_nbytes == 0

    def test_as_text(self, tmp_path):
        array = opened(tmp_path / "file.npy", np.arange(5))
        array.tofile(tmp_path / "text", sep=",", format="%d")
        assert (tmp_path / "text").read_text() == "0,1,2,3,4"

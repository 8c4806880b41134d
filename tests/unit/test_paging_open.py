"""paging/open.py: .npy files, raw files, what is refused, and the way back to the region."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import PagedArray, PagedMemory, open_array, region_of
from pagemove.stores import FileStore, FsspecStore
from support import wait_for
from support.stores import BytesStore

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("no_leak")]

RECORD = np.dtype([("id", "<i4"), ("name", "S7"), ("place", [("x", "<f8"), ("y", "<f8")], (2,))])
ARRAYS = {
    "numbers": np.arange(50_000.0).reshape(100, 20, 25),
    "fortran": np.asfortranarray(np.arange(60_000, dtype="<u2").reshape(200, 30, 10)),
    "fortran, one dimension": np.asfortranarray(np.arange(100)),
    "big-endian": np.arange(1000, dtype=">i8"),
    "records": np.frombuffer(np.random.default_rng(1).bytes(RECORD.itemsize * 500), RECORD),
    "text": np.array(["a", "bé", "中文"] * 400),
    "dates": np.arange("2014-10", "2026-11", dtype="datetime64[D]"),
    "complex": np.arange(999) * 1j,
    "bool": np.arange(77) % 3 == 0,
    "no dimension": np.array(3.25),
    "no items": np.zeros((0, 3)),
    "no items, fortran": np.zeros((5, 0, 2), order="F"),
    "no bytes": np.zeros(4, "V0"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.npy"


def save(path: Path, array: np.ndarray, version: tuple[int, int] | None = None) -> None:
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that version 2 or 3 is not for everybody
        np.lib.format.write_array(file, array, version, allow_pickle=True)


class TestNpy:
    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    @pytest.mark.parametrize("name", ARRAYS)
    def test_is_what_numpy_loads(self, path, name, mode):
        save(path, ARRAYS[name])
        expected = np.load(path)
        found = open_array(path, mode=mode)
        assert (found.dtype, found.shape, found.strides) == (
            expected.dtype,
            expected.shape,
            expected.strides,
        )
        assert found.tobytes() == expected.tobytes()
        assert found.flags.writeable == (mode != "r")
        assert found.flags.aligned
        assert type(found) is PagedArray

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_every_version(self, path, version):
        array = np.ones(300, [("a", "<u2"), ("b", ">f4")])
        save(path, array, version)
        assert path.read_bytes()[6:8] == bytes(version)
        found = open_array(path)
        assert (found == np.load(path)).all()
        assert found.dtype == array.dtype

    def test_names_that_only_version_3_can_have(self, path):
        names = ["größe", "中文", "back\\slash", "q'uote\"", "\U0001f40d", "\\中"]
        save(path, np.zeros(5, [(name, "u1") for name in names]))
        assert path.read_bytes()[6] == 3
        assert list(open_array(path).dtype.names) == names

    def test_long_headers(self, path):
        array = np.zeros(3, [(f"column number {n}", "<f8") for n in range(3000)])
        save(path, array)
        with pytest.raises(ValueError, match="max_header_size"):
            np.load(path)
        assert open_array(path).dtype == array.dtype

    def test_whatever_its_name(self, tmp_path):
        save(tmp_path / "no suffix", ARRAYS["numbers"])
        assert (open_array(tmp_path / "no suffix") == ARRAYS["numbers"]).all()

    def test_string_path_and_store(self, path):
        save(path, ARRAYS["numbers"])
        assert (open_array(str(path)) == ARRAYS["numbers"]).all()
        with FileStore(path) as store:
            found = open_array(store)
        assert (found == ARRAYS["numbers"]).all()

    def test_larger_than_its_limit(self, path):
        array = np.random.default_rng(2).random((1000, 300))
        save(path, array)
        found = open_array(path, resident_limit="256KiB", block_size="16KiB")
        assert found.sum() == array.sum()
        assert (found[::7, ::3] == array[::7, ::3]).all()
        stats = region_of(found).stats()
        assert stats.resident_nbytes <= 256 << 10 < array.nbytes

    def test_changes_in_place(self, path):
        save(path, ARRAYS["fortran"])
        found = open_array(path, mode="r+", resident_limit="256KiB")
        found[3, :, 5] += 1
        region_of(found).flush()
        expected = ARRAYS["fortran"].copy()
        expected[3, :, 5] += 1
        loaded = np.load(path)
        assert (loaded == expected).all()
        assert loaded.flags.f_contiguous

    def test_agreeing_arguments_are_no_contradiction(self, path):
        save(path, np.zeros((4, 5), "<f4"))
        assert open_array(path, dtype="<f4", shape=(4, 5)).shape == (4, 5)
        for wrong in ({"dtype": "<f8"}, {"shape": (5, 4)}, {"shape": 20}):
            with pytest.raises(ValueError, match=r"header that says .*offset=128"):
                open_array(path, **wrong)
        assert open_array(path, dtype="<u4", offset=128).shape == (20,)

    def test_python_objects_are_refused(self, path):
        save(path, np.array([1, "two", None], object))
        with pytest.raises(TypeError, match="Python objects"):
            open_array(path)

    @pytest.mark.parametrize("left", [128 + 799, 128, 127, 11, 9, 8])
    def test_cut_short(self, path, left):
        save(path, np.arange(100.0))
        os.truncate(path, left)
        with pytest.raises(ValueError, match=str(path)):
            open_array(path)

    @pytest.mark.parametrize(
        "header",
        [
            b"{'descr': '<f8', 'fortran_order': False}",
            b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }; import os",
            b"{'descr': 'what', 'fortran_order': False, 'shape': (2,), }",
            b"\xff\xfe" * 8,
            b"(" * 5000,
        ],
    )
    @pytest.mark.parametrize("version", [1, 2, 3, 9])
    def test_bad_headers(self, path, header, version):
        size = struct.pack("<H" if version == 1 else "<I", len(header))
        path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + header + bytes(100))
        with pytest.raises(ValueError, match="its header cannot be read"):
            open_array(path)

    def test_a_header_with_an_impossible_length(self, path):
        path.write_bytes(b"\x93NUMPY\2\0\xff\xff\xff\x7f" + bytes(100))
        with pytest.raises(ValueError, match="2147483647 bytes"):
            open_array(path)

    @pytest.mark.parametrize("length", [129 << 10, 1 << 20])
    def test_a_long_header_is_not_parsed(self, path, length, monkeypatch):
        monkeypatch.setattr("pagemove.containers.npy._parsed", None)
        text = b"{'descr':'<f8','fortran_order':False,'shape':(" + b"1," * (length // 2)
        header = text[: length - 2] + b")}"
        path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", length) + header + bytes(100))
        with pytest.raises(ValueError, match="more than the 131072 that are read"):
            open_array(path)

    def test_a_deep_header_is_not_parsed(self, path, monkeypatch):
        monkeypatch.setattr(np.lib.format, "read_array_header_2_0", None)
        header = b"(" * (100 << 10)
        path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", len(header)) + header)
        with pytest.raises(ValueError, match="nested deeper than 64"):
            open_array(path)


class TestRaw:
    @pytest.fixture
    def raw(self, tmp_path):
        found = tmp_path / "raw"
        found.write_bytes(np.arange(10_000, dtype="<u4").tobytes() + b"xy")
        return found

    def test_with_dtype_and_shape(self, raw):
        assert open_array(raw, dtype="<u4", shape=(100, 100))[99, 99] == 9999
        assert open_array(raw, dtype="<u4", shape=10, offset=40).tolist() == list(range(10, 20))
        assert open_array(raw, dtype="u1").shape == (40_002,)
        assert open_array(raw, dtype="S2", offset=40_000).tolist() == [b"xy"]
        assert open_array(raw, dtype="<u4", shape=[2, 3]).tolist() == [[0, 1, 2], [3, 4, 5]]
        assert open_array(raw, dtype="u1", shape=(2, -1)).shape == (2, 20_001)
        assert open_array(raw, dtype="<u4", shape=()) == 0
        assert open_array(raw, dtype="<u4", shape=(0, 5)).size == 0

    def test_at_any_offset(self, raw):
        found = open_array(raw, dtype="<u4", shape=5, offset=1)
        expected = np.frombuffer(raw.read_bytes(), "<u4", 5, 1)
        assert (found == expected).all()

    @pytest.mark.parametrize(
        ("arguments", "kind", "reason"),
        [
            ({}, TypeError, "no .npy header.*pass a dtype"),
            ({"dtype": "<u4"}, ValueError, "not whole items of 4 bytes: pass a shape, .* 10000"),
            ({"dtype": "<u4", "shape": 10_001}, ValueError, "has 40002 bytes.*needs 40004"),
            ({"dtype": "<u4", "shape": (-2, 5)}, ValueError, "negative"),
            ({"dtype": "<u4", "shape": (-1, -1)}, ValueError, "negative"),
            ({"dtype": "<u4", "shape": (-1, 5)}, ValueError, "no whole number of rows"),
            ({"dtype": "u1", "shape": (-1, 0)}, ValueError, "no whole number of rows"),
            ({"resident_limt": 1}, TypeError, r"open_array\(\).*did you mean 'resident_limit'"),
            ({"order": "F"}, TypeError, "pagemove.memmap has an order"),
            ({"direct": True}, TypeError, "storage_options="),
            ({"dtype": "u1", "offset": 40_003}, ValueError, "offset 40003 is not within"),
            ({"dtype": "u1", "offset": -1}, ValueError, "offset -1 is not within"),
            ({"dtype": "V0"}, ValueError, "has no size"),
            ({"dtype": "O"}, TypeError, "Python objects"),
            ({"dtype": "u1", "shape": 1.5}, TypeError, "float"),
            ({"dtype": "u1", "mode": "w"}, ValueError, "mode must be"),
            ({"dtype": "u1", "limit": 5}, TypeError, "limit"),
        ],
    )
    def test_refused(self, raw, arguments, kind, reason):
        with pytest.raises(kind, match=reason):
            open_array(raw, **arguments)

    def test_paging_options_are_passed_on(self, raw):
        found = open_array(
            raw, dtype="u1", mode="c", resident_limit="64KiB", block_size=4096, name="raw"
        )
        region = region_of(found)
        assert (region.mode, region.resident_limit, region.block_size) == ("c", 65536, 4096)


def _log_ends() -> None:
    """Wait for the thread that reads a helper's log, which sees in its own time that it ended."""
    wait_for(lambda: all(each.name != "pagemove-log" for each in threading.enumerate()))


class TestSources:
    @pytest.mark.needs("fsspec")
    def test_urls(self, tmp_path):
        import fsspec

        save(tmp_path / "an array.npy", np.arange(5000))
        contents = (tmp_path / "an array.npy").read_bytes()
        fsspec.filesystem("memory").pipe("/array.npy", contents)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x.npy", contents)
        for url in ("memory://array.npy", f"zip://x.npy::file://{tmp_path}/a.zip"):
            array = open_array(url, resident_limit="64KiB", block_size=4096)
            assert isinstance(region_of(array).store, FsspecStore)
            assert np.array_equal(array, np.arange(5000))
        with pytest.raises(ValueError, match="mode 'c'"):
            open_array("memory://array.npy", mode="r+")
        del array
        _log_ends()

    def test_a_url_of_a_file_is_the_file(self, tmp_path):
        save(tmp_path / "an array.npy", np.arange(5))
        array = open_array(f"FILE://{tmp_path}/an%20array.npy", mode="r+")
        assert isinstance(region_of(array).store, FileStore)
        assert array.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(FileNotFoundError):
            open_array("file:///none")

    def test_storage_options_reach_the_filesystem(self, monkeypatch):
        def opened(url, **options):
            raise LookupError(url, options)

        monkeypatch.setattr("pagemove.stores.fsspec.FsspecStore", opened)
        for url in ("S3://bucket/x", "simplecache::https://host/x"):
            with pytest.raises(LookupError) as caught:
                open_array(url, storage_options={"anon": True})
            assert caught.value.args == (url, {"anon": True})
        with pytest.raises(ValueError, match="for URLs"):
            open_array("file", storage_options={"anon": True})

    def test_an_array_in_redis_needs_its_name(self):
        for url in ("redis://:secret@host/1", "unix://:secret@/socket", "valkeys://:secret@host#"):
            with pytest.raises(ValueError, match=r"has a name: .*#NAME") as caught:
                open_array(url)
            assert "secret" not in str(caught.value)

    def test_an_array_in_redis_by_its_url(self, monkeypatch):
        def opened(url, key, **options):
            raise LookupError(url, key, options)

        monkeypatch.setattr("pagemove.stores.redis.RedisStore", opened)
        with pytest.raises(LookupError) as caught:
            open_array("Redis://host/1?x=y#my%20array", mode="r+", storage_options={"lease": 5})
        expected = ("Redis://host/1?x=y", "my array", {"writable": True, "lease": 5})
        assert caught.value.args == expected

    def test_a_path_that_only_looks_odd(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save(Path("a:b"), np.arange(3))
        assert open_array("a:b").tolist() == [0, 1, 2]

    def test_stores_in_python(self):
        file = io.BytesIO()
        np.save(file, np.arange(5))
        assert open_array(BytesStore(file.getvalue())).tolist() == [0, 1, 2, 3, 4]
        _log_ends()

    @pytest.mark.parametrize("wrong", [np.zeros(5), b"x" * 100, None, 5])
    def test_what_is_no_source(self, wrong):
        with pytest.raises(TypeError, match=r"store must be|in memory already"):
            open_array(wrong)

    def test_of_a_store_that_is_described_whole_nothing_is_read_here(self, monkeypatch):
        """It would be waited for without a timeout; the helper reads it when it is touched."""
        store = BytesStore(np.arange(5).tobytes())
        reads = []
        monkeypatch.setattr(BytesStore, "read_into", lambda *_: reads.append(1))
        assert open_array(store, dtype=int, shape=5).tolist() == [0, 1, 2, 3, 4]
        assert not reads

    def test_a_header_contradicts_what_a_store_is_said_to_be(self):
        file = io.BytesIO()
        np.save(file, np.arange(5))
        with pytest.raises(ValueError, match=r"header that says shape \(5,\)"):
            open_array(BytesStore(file.getvalue()), dtype=int, shape=3)

    def test_missing_empty_and_directories(self, tmp_path):
        (tmp_path / "empty").touch()
        with pytest.raises(FileNotFoundError):
            open_array(tmp_path / "none")
        with pytest.raises(ValueError, match="is empty"):
            open_array(tmp_path / "empty", dtype="u1")
        with pytest.raises(IsADirectoryError):
            open_array(tmp_path)

    def test_a_store_of_ones_own_has_to_be_writable(self, path):
        save(path, np.arange(5))
        with FileStore(path) as store, pytest.raises(ValueError, match="writable=True"):
            open_array(store, mode="r+")


class TestBase:
    """What looks behind an array (scipy.sparse, for one) finds as many items, of the same kind."""

    @pytest.mark.parametrize("dtype", ["f8", "u1", "S7", ">i2", [("a", "u1"), ("b", "<f4")]])
    @pytest.mark.parametrize(("shape", "order"), [((60,), "C"), ((3, 20), "C"), ((4, 5, 3), "F")])
    def test_is_of_the_same_kind_and_size(self, tmp_path, dtype, shape, order):
        np.save(tmp_path / "x.npy", np.zeros(shape, dtype, order=order))
        array = open_array(tmp_path / "x.npy")
        for seen in (array, array[1:2], array.T, array.reshape(-1, order=order)):
            assert isinstance(seen.base, np.ndarray)
            assert (seen.base.dtype, seen.base.size) == (np.dtype(dtype), 60)
            assert np.may_share_memory(seen, seen.base)
            assert np.shares_memory(array, seen)
            assert region_of(seen.base) is region_of(array)

    def test_without_a_header(self, tmp_path):
        np.arange(100.0).tofile(tmp_path / "raw")
        for offset in (0, 8, 5):
            array = open_array(tmp_path / "raw", dtype="f8", shape=(7, 9), offset=offset)
            assert (array.base.dtype, array.base.size) == (np.float64, 63)
            expected = np.frombuffer((tmp_path / "raw").read_bytes(), "f8", 63, offset)
            assert array.tobytes() == expected.tobytes()
            assert array.flags.aligned == (offset != 5)

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
    def test_one_item_or_none(self, tmp_path, shape):
        np.save(tmp_path / "x.npy", np.ones(shape))
        array = open_array(tmp_path / "x.npy")
        assert (array.shape, array.tolist()) == (shape, np.ones(shape).tolist())
        assert region_of(array).nbytes >= 128

    def test_of_subarrays(self, tmp_path):
        np.arange(24, dtype="i4").tofile(tmp_path / "raw")
        array = open_array(tmp_path / "raw", dtype="(2,3)i4", shape=(2, 2))
        assert array.tolist() == np.arange(24).reshape(2, 2, 2, 3).tolist()
        assert array.base.size == 24

    def test_keeps_the_region_open(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(60.0))
        array = open_array(tmp_path / "x.npy")
        region, base = region_of(array), array.base
        del array
        with pytest.raises(BufferError):
            region.close()
        assert base.sum() == 1770
        del base
        region.close()


class TestRegionOf:
    def test_behind_any_view(self, path):
        save(path, ARRAYS["fortran"])
        found = open_array(path)
        region = region_of(found)
        assert isinstance(region, PagedMemory)
        for view in (
            found[3:],
            found.T,
            found[..., 0],
            found.reshape(-1, order="F"),
            found.view(">u2"),
        ):
            assert region_of(view) is region
        assert region_of(np.frombuffer(region, "u1")) is region
        assert region.store.path == path

    def test_keeps_everything(self, path):
        save(path, np.arange(5))
        region = region_of(open_array(path))
        assert region.asarray("<i8", 5, 128).tolist() == [0, 1, 2, 3, 4]

    def test_no_region(self, path):
        save(path, np.arange(5))
        for other in (np.zeros(3), open_array(path).copy(), pagemove.empty(3)):
            with pytest.raises(ValueError, match="not in paged memory"):
                region_of(other)
        for wrong in (region_of(open_array(path)), [1, 2], None):
            with pytest.raises(TypeError, match="is not an array"):
                region_of(wrong)

"""Files that hold arrays by name: each format as its own library writes it, and what is refused."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pagemove import open_array, open_arrays
from pagemove.containers.layout import Span, best_shift
from pagemove.stores import FileStore
from support.containers import ARRAYS, same
from support.threads import together

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("no_leak")]


class TestNpz:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "some.npz"
        np.savez(
            path, fortran=np.asfortranarray(ARRAYS["a"]), big=np.arange(9, dtype=">i2"), **ARRAYS
        )
        return path

    def test_every_array_is_what_numpy_loads(self, path):
        with np.load(path) as loaded, open_arrays(path, resident_limit="256KiB") as arrays:
            assert list(arrays) == loaded.files
            for name in loaded.files:
                same(arrays[name], loaded[name])
                same(open_array(path, name=name), loaded[name])
                same(open_array(f"{path}#{name}"), loaded[name])
                assert open_array(path, name=name).flags.aligned
            assert len(arrays.regions) == 1

    def test_a_store_will_do(self, path):
        with FileStore(path) as store:
            same(open_array(store, name="odd"), ARRAYS["odd"])
            with open_arrays(store) as arrays:
                same(arrays["odd"], ARRAYS["odd"])
            assert not store.closed

    def test_the_whole_name_wins(self, path):
        whole = path.with_name("some.npz#odd")
        np.save(whole.with_suffix(".npy"), np.arange(3))
        whole.with_suffix(".npy").rename(whole)
        same(open_array(whole), np.arange(3))

    def test_compressed_ones_are_refused_or_unpacked_once(self, tmp_path):
        path = tmp_path / "packed.npz"
        np.savez_compressed(path, **ARRAYS)
        with open_arrays(path) as arrays, pytest.raises(ValueError, match="deflated='compress'"):
            arrays["a"]
        with open_arrays(path, deflated="compress", resident_limit="1MiB") as arrays:
            for name, array in ARRAYS.items():
                same(arrays[name], array)
        same(open_array(path, name="a", deflated="compress"), ARRAYS["a"])

    def test_is_not_written_in_place_but_privately(self, path):
        before = path.read_bytes()
        for call in (open_arrays, lambda *args, **how: open_array(*args, name="a", **how)):
            with pytest.raises(ValueError, match="checksums"):
                call(path, mode="r+")
        with open_arrays(path, mode="c") as arrays:
            arrays["a"][:] = 1
            assert arrays["a"].sum() == 30_000
        assert path.read_bytes() == before

    def test_encrypted(self, path):
        data = bytearray(path.read_bytes())
        for at in range(len(data)):
            if data[at : at + 4] == b"PK\1\2":
                data[at + 8] |= 1
        path.write_bytes(data)
        with open_arrays(path) as arrays, pytest.raises(ValueError, match=r"'a.npy' is encrypted"):
            arrays["a"]

    def test_objects_and_what_is_no_array(self, tmp_path):
        path = tmp_path / "mixed.npz"
        np.savez(path, good=np.arange(3), objects=np.array([{}], object))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("note.txt", "no array")
        with open_arrays(path) as arrays:
            same(arrays["good"], np.arange(3))
            with pytest.raises(TypeError, match=r"'objects\.npy'.*Python objects"):
                arrays["objects"]
            with pytest.raises(ValueError, match=r"'note\.txt' has no \.npy header"):
                arrays["note.txt"]

    def test_of_no_members(self, tmp_path):
        np.savez(tmp_path / "x.npz")
        with open_arrays(tmp_path / "x.npz") as arrays:
            assert list(arrays) == []
            with pytest.raises(KeyError, match="no array 'a', nor any other"):
                arrays["a"]

    def test_names_are_no_paths_and_are_there_once(self, tmp_path):
        path, twice = tmp_path / "x.npz", tmp_path / "twice.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("../../up.npy", "/root.npy", "a#b.npy", "folder/"):
                with archive.open(name, "w") as member:
                    np.lib.format.write_array(member, np.arange(3))
        with open_arrays(path) as arrays:
            assert list(arrays) == ["../../up", "/root", "a#b"]
            for array in arrays.values():
                same(array, np.arange(3))
        same(open_array(f"{path}#../../up"), np.arange(3))
        assert [each.name for each in tmp_path.iterdir()] == ["x.npz"]
        with zipfile.ZipFile(twice, "w") as archive:
            for name in ("a.npy", "a"):
                archive.writestr(name, b"x")
        with pytest.raises(ValueError, match="two members that are 'a'"):
            open_arrays(twice)

    def test_through_a_link(self, path):
        link = path.with_name("link")
        link.symlink_to(path)
        same(open_array(f"{link}", name="odd"), ARRAYS["odd"])

    @pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_compressions(self, tmp_path, kind):
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w", kind) as archive, archive.open("a.npy", "w") as member:
            np.lib.format.write_array(member, ARRAYS["a"])
        with pytest.raises(ValueError, match="deflated='compress'"):
            open_array(path, name="a")
        same(open_array(path, name="a", deflated="compress"), ARRAYS["a"])

    def test_cut_short(self, path):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"directory cannot be read.*write it again"):
            open_arrays(path)


class TestMapping:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        np.savez(tmp_path / "x.npz", **ARRAYS)
        return tmp_path / "x.npz"

    def test_nothing_is_opened_before_it_is_wanted(self, path):
        with open_arrays(path) as arrays:
            assert (len(arrays), "a" in arrays, "b" in arrays) == (len(ARRAYS), True, False)
            assert arrays.regions == ()

    def test_unknown_names(self, path):
        with (
            open_arrays(path) as arrays,
            pytest.raises(KeyError, match=r"no array 'flag'.*'flags'"),
        ):
            arrays["flag"]
        with pytest.raises(ValueError, match=r"no array 'flag'.*'flags'"):
            open_array(path, name="flag")
        with pytest.raises(TypeError, match="name must be a string, not int"):
            open_array(path, name=5)
        with pytest.raises(TypeError, match="npz file, which holds arrays by name: pass name="):
            open_array(path)
        with pytest.raises(TypeError, match="no dtype, shape or offset"):
            open_array(f"{path}#a", dtype="f8")

    def test_closing(self, path):
        arrays = open_arrays(path)
        array = arrays["a"]
        with pytest.raises(BufferError):
            arrays.close()
        same(array, ARRAYS["a"])
        del array
        arrays.close()
        arrays.close()
        with pytest.raises(ValueError, match="closed"):
            arrays["a"]
        assert "closed" in repr(arrays)

    def test_a_region_in_use_keeps_no_other_open(self, tmp_path):
        np.savez_compressed(tmp_path / "two.npz", a=np.arange(9), b=np.ones(9), c=np.ones(9))
        arrays = open_arrays(tmp_path / "two.npz", deflated="compress")
        kept, b, c = arrays["a"], arrays["b"], arrays["c"]
        regions = [array.region for array in (kept, b, c)]
        del b
        with pytest.raises(BufferError, match=r"2 of the 3 regions .* cannot be closed.*(a.*c)"):
            arrays.close()
        assert [region.closed for region in regions] == [False, True, False]
        same(kept, np.arange(9))
        del kept, c
        arrays.close()
        assert all(region.closed for region in regions)

    def test_arrays_outlive_the_mapping(self, path):
        with open_arrays(path) as arrays:
            array = arrays["a"]
        del arrays
        same(array, ARRAYS["a"])

    def test_of_one_array_or_of_something_else(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(3))
        (tmp_path / "raw").write_bytes(bytes(100))
        with pytest.raises(ValueError, match=r"\.npy file, which is one array"):
            open_arrays(tmp_path / "x.npy")
        with pytest.raises(ValueError, match="does not begin like"):
            open_arrays(tmp_path / "raw")

    def test_the_name_of_a_mapping_is_still_one_elsewhere(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(3))
        same(open_array(tmp_path / "x.npy", name="mine"), np.arange(3))


def test_the_best_shift():
    assert best_shift([]) == 0
    assert best_shift([Span(13, 100, 8), Span(22, 99, 2), Span(29, 10, 8)]) == 5
    assert best_shift([Span(13, 100, 8), Span(16, 101, 8)]) == 0


def safetensors_file(
    path: Path, header: object, data: bytes = b"", length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


class TestSafetensors:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        numpy = pytest.importorskip("safetensors.numpy")
        numpy.save_file(ARRAYS, tmp_path / "x.safetensors", {"format": "np"})
        return tmp_path / "x.safetensors"

    def test_every_tensor(self, path):
        with open_arrays(path, resident_limit="256KiB") as arrays:
            assert set(arrays) == set(ARRAYS)
            for name, array in ARRAYS.items():
                same(arrays[name], array)
                same(open_array(f"file://{path}#{name}"), array)

    def test_written_in_place(self, path):
        from safetensors.numpy import load_file

        with open_arrays(path, mode="r+") as arrays:
            arrays["cube"][1] = -1
        array = open_array(path, name="wide name", mode="r+")
        array[-1] = 77
        array.flush()
        loaded = load_file(path)
        assert (loaded["cube"][1] == -1).all()
        assert loaded["wide name"][-1] == 77
        assert loaded["a"].tobytes() == ARRAYS["a"].tobytes()
        assert loaded["cube"][0].tobytes() == ARRAYS["cube"][0].tobytes()

    @pytest.mark.parametrize("mode", ["r", "c", "r+"])
    def test_a_region_lies_in_cache_lines_as_the_file_does(self, tmp_path, mode):
        header = {
            "a": {"dtype": "U8", "shape": [40], "data_offsets": [0, 40]},
            "b": {"dtype": "F64", "shape": [100], "data_offsets": [40, 840]},
            "odd": {"dtype": "U8", "shape": [3], "data_offsets": [840, 843]},
            "c": {"dtype": "F64", "shape": [9], "data_offsets": [843, 915]},
        }
        text = json.dumps(header).encode()
        text = text.ljust(-(-len(text) // 64) * 64)
        data = np.random.default_rng(1).bytes(915)
        path = safetensors_file(tmp_path / "x.safetensors", text, data)
        for name, in_line in (("b", 48), ("c", 0)):
            first, end = header[name]["data_offsets"]
            array = open_array(path, name=name, mode=mode)
            assert array.tobytes() == data[first:end]
            assert array.flags.aligned
            assert array.offset == 8 + len(text) + first
            # To be written the region is of the array alone, so that nothing else is.
            assert array.ctypes.data % 64 == (0 if mode == "r+" else in_line)
            assert array.region.nbytes == array.nbytes + array.ctypes.data % 64
            del array

    def test_types_that_numpy_lacks(self, tmp_path, monkeypatch):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        values = np.arange(100, dtype="f4").astype(ml_dtypes.bfloat16)
        small = np.arange(64, dtype="f4").astype(ml_dtypes.float8_e4m3fn)
        header = {
            "b": {"dtype": "BF16", "shape": [10, 10], "data_offsets": [0, 200]},
            "f": {"dtype": "F8_E4M3", "shape": [64], "data_offsets": [200, 264]},
            "n": {"dtype": "F4", "shape": [4], "data_offsets": [264, 266]},
        }
        data = values.tobytes() + small.tobytes() + b"xy"
        path = safetensors_file(tmp_path / "x.safetensors", header, data)
        with open_arrays(path) as arrays:
            same(arrays["b"], values.reshape(10, 10))
            same(arrays["f"], small)
            with pytest.raises(TypeError, match=r"tensor 'n' is F4.*less than a byte"):
                arrays["n"]
        monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
        with open_arrays(path) as arrays, pytest.warns(UserWarning, match=r"pagemove\[ml-dtypes\]"):
            same(arrays["b"], values.view("<u2").reshape(10, 10))

    def test_threads_share_one_region(self, tmp_path):
        numpy = pytest.importorskip("safetensors.numpy")
        numpy.save_file({"a": ARRAYS["a"]}, tmp_path / "x.safetensors")
        with open_arrays(tmp_path / "x.safetensors", mode="r+") as arrays:
            together(*(lambda: same(arrays["a"], ARRAYS["a"]) for _ in range(8)))
            assert len(arrays.regions) == 1

    def test_several_files_with_an_index(self, tmp_path):
        numpy = pytest.importorskip("safetensors.numpy")
        numpy.save_file({"a": ARRAYS["a"]}, tmp_path / "m-1.safetensors")
        numpy.save_file({"odd": ARRAYS["odd"]}, tmp_path / "m-2.safetensors")
        index = tmp_path / "m.safetensors.index.json"
        where = {"a": "m-1.safetensors", "odd": "m-2.safetensors", "lost": "m-3.safetensors"}
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
        with open_arrays(index) as arrays:
            assert list(arrays) == ["a", "odd", "lost"]
            same(arrays["odd"], ARRAYS["odd"])
            assert len(arrays.regions) == 1
            same(arrays["a"], ARRAYS["a"])
            assert len(arrays.regions) == 2
            with pytest.raises(FileNotFoundError, match=r"m-3\.safetensors"):
                arrays["lost"]
            with pytest.raises(KeyError, match="no array 'b'"):
                arrays["b"]
        with open_arrays(index, resident_limit="1MiB", block_size=4096) as arrays:
            assert arrays["a"].region.budget is arrays["odd"].region.budget
            assert arrays["a"].region.budget.limit == 1 << 20
        same(open_array(index, name="a"), ARRAYS["a"])
        same(open_array(f"{index}#odd"), ARRAYS["odd"])
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs#1").mkdir()
        np.savez(tmp_path / "runs#1" / "x.npz", a=ARRAYS["a"])
        same(open_array(f"{tmp_path}/runs#1/x.npz#a"), ARRAYS["a"])
        for file in ("../secret", "/etc/passwd", "", "..", "m-1.safetensors\0", 5):
            index.write_text(json.dumps({"weight_map": {"a": file}}))
            with pytest.raises(ValueError, match="not the name of a file beside"):
                open_arrays(index)
        for text, message in (("{", "cannot be read"), ('{"weight_map": []}', "has no weight_map")):
            index.write_text(text)
            with pytest.raises(ValueError, match=message):
                open_array(index, name="a")

    @pytest.mark.parametrize(
        ("header", "data", "message"),
        [
            ({"x": {"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}}, b"a", "not known"),
            ({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}}, b"a", "takes 2"),
            ({"x": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"a", "can be"),
            ({"x": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"a", "truncated"),
            ({"x": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"a", "can be"),
            ({"x": {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}}, b"a", "65 axes"),
            ({"x": {"dtype": "F64", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, b"a",
             "2\\*\\*63"),
            ({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
              "y": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"abc", "overlap"),
            (b'{"x": {}, "x": {}}', b"", "twice"),
            (b'{"x": ' + b"[" * 100_000, b"", "cannot be read"),
            (b'{"x"', b"", "cannot be read"),
        ],
    )  # fmt: skip
    def test_headers_that_cannot_be(self, tmp_path, header, data, message):
        path = safetensors_file(tmp_path / "x.safetensors", header, data)
        with pytest.raises(ValueError, match=rf"(?s)x\.safetensors.*{message}"):
            open_arrays(path)

    def test_a_header_that_claims_a_gigabyte(self, tmp_path):
        path = safetensors_file(tmp_path / "x.safetensors", b"{", length=1 << 30)
        with path.open("r+b") as file:
            file.truncate(4 << 30)
        with pytest.raises(ValueError, match="1073741824 bytes, and at most"):
            open_arrays(path)

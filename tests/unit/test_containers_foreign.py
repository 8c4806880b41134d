"""Files of other libraries that hold arrays by name: GGUF, HDF5 and Arrow."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from pagemove import open_array, open_arrays
from pagemove.containers.hdf5 import dataset_in
from pagemove.paging.sources import Source
from pagemove.stores import FileStore
from support.containers import ARRAYS, same

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("no_leak")]


class TestGguf:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        gguf = pytest.importorskip("gguf")
        path = tmp_path / "x.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_array("tokens", [f"token {n}" for n in range(5000)])
        writer.add_array("scores", [float(n) for n in range(5000)])
        for name in ("a", "cube", "wide name"):
            writer.add_tensor(name, ARRAYS[name])
        packed = np.arange(4 * 34, dtype="u1").reshape(2, 68)
        writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def test_every_tensor(self, path):
        import gguf

        tensors = gguf.GGUFReader(path).tensors
        with open_arrays(path, resident_limit="256KiB") as arrays:
            assert list(arrays) == [tensor.name for tensor in tensors]
            for tensor in tensors:
                same(arrays[tensor.name], np.asarray(tensor.data))
                assert arrays[tensor.name].flags.aligned
        same(open_array(path, name="a"), ARRAYS["a"])

    def test_its_types_are_those_of_the_library(self):
        gguf = pytest.importorskip("gguf")
        from pagemove.containers.gguf import _BF16, _BLOCKS, _PLAIN

        known = {kind: size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind in _BLOCKS}
        assert known == {kind: _BLOCKS[kind] for kind in known}
        assert len(known) == len(_BLOCKS)
        plain = {int(kind) for kind, (items, _) in gguf.GGML_QUANT_SIZES.items() if items == 1}
        assert plain == {*_PLAIN, _BF16}

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (struct.pack("<IQQ", 1, 0, 0), "version 1"),
            (struct.pack("<IQQ", 3, 2**60, 0), "truncated"),
            (struct.pack("<IQQQ", 3, 0, 1, 2**62), "truncated"),
            (struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "type 77"),
            (struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**61), "goes on"),
            (struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQQIQ", 2, 2**62, 4, 0, 0),
             "2\\*\\*63"),
            (struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 9, 0, 0), "ends at"),
        ],
    )  # fmt: skip
    def test_headers_that_cannot_be(self, tmp_path, body, message):
        path = tmp_path / "x.gguf"
        path.write_bytes(b"GGUF" + body)
        with pytest.raises(ValueError, match=rf"x\.gguf.*{message}"):
            open_arrays(path)


class TestHdf5:
    @pytest.mark.parametrize("userblock", [0, 512])
    def test_datasets(self, tmp_path, userblock):
        h5py = pytest.importorskip("h5py")
        path = tmp_path / "x.h5"
        record = np.zeros(5, [("n", "<i4"), ("x", ">f8")])
        with h5py.File(path, "w", userblock_size=userblock) as file:
            for name, array in ARRAYS.items():
                file[f"group/{name}"] = array
            file["record"] = record
            file.create_dataset("chunked", data=ARRAYS["a"], chunks=(10, 300))
            file.create_dataset("unwritten", (10,), "f8")
            file["words"] = ["some", "words"]
            file["fixed"] = np.array([b"ab", b"c"])
        with open_arrays(path, resident_limit="1MiB") as arrays:
            for name, array in ARRAYS.items():
                same(arrays[f"group/{name}"], array)
            same(arrays["record"], record)
            same(arrays["fixed"], np.array([b"ab", b"c"]))
            same(arrays["chunked"], ARRAYS["a"])
            assert len(arrays.regions) == 2
            assert len({region.budget for region in arrays.regions}) == 1
            for name, kind, message in (
                ("unwritten", ValueError, "never written"),
                ("words", TypeError, "variable length"),
            ):
                with pytest.raises(kind, match=rf"x\.h5.*dataset '{name}'.*{message}"):
                    arrays[name]
        same(open_array(f"{path}#group/a"), ARRAYS["a"])

        def refused(arrays):
            with pytest.raises(ValueError, match=r"dataset 'chunked'.*h5repack"):
                arrays["chunked"]

        # Of a store h5py has no name, and to be written it would find the file locked.
        with FileStore(path) as store, open_arrays(store) as arrays:
            refused(arrays)
        with open_arrays(path, mode="r+") as arrays:
            refused(arrays)
        with Source(f"{path}#chunked").open() as part:
            assert part.nbytes == ARRAYS["a"].nbytes

    def test_every_name_of_a_dataset_and_none_of_another_file(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        path, other = tmp_path / "x.h5", tmp_path / "other.h5"
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(80))
        with h5py.File(other, "w") as file:
            file["a"] = ARRAYS["a"]
        with h5py.File(path, "w") as file:
            file["named"] = ARRAYS["a"]
            file["a group/again"] = file["named"]
            file["a group/itself"] = file["a group"]
            file["soft"] = h5py.SoftLink("/a group/again")
            file["nowhere"] = h5py.SoftLink("/none")
            file["link"] = h5py.ExternalLink("other.h5", "/a")
            file.create_dataset("raw", (10,), "f8", external=[(str(secret), 0, 80)])
        with open_arrays(path) as arrays:
            assert set(arrays) == {"named", "a group/again", "soft", "link", "raw"}
            for name in ("named", "a group/again", "soft"):
                same(arrays[name], ARRAYS["a"])
            assert len(arrays.regions) == 1
            with pytest.raises(ValueError, match=r"'link' is a link to another file, 'other\.h5'"):
                arrays["link"]
            with pytest.raises(ValueError, match="'raw' is in other files: open those"):
                arrays["raw"]

    def test_a_path_through_another_file_is_not_taken_for_one_in_this(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        path, other = tmp_path / "x.h5", tmp_path / "other.h5"
        with h5py.File(other, "w") as file:
            file["a"] = ARRAYS["a"] + 1
        with h5py.File(path, "w") as file:
            file["a"] = ARRAYS["a"]
            file["there"] = h5py.ExternalLink("other.h5", "/")
            file["soft"] = h5py.SoftLink("/there/a")
            layout = h5py.VirtualLayout(ARRAYS["a"].shape, "f8")
            layout[...] = h5py.VirtualSource("other.h5", "a", ARRAYS["a"].shape)
            file.create_virtual_dataset("virtual", layout)
        with open_arrays(path) as arrays:
            same(arrays["a"], ARRAYS["a"])
            with pytest.raises(ValueError, match="'soft' is a link that leads to another file"):
                arrays["soft"]
        with FileStore(path) as store:
            assert (dataset_in(store, "a")[...] == ARRAYS["a"]).all()
            for name, why in (("soft", "leads to another file"), ("virtual", "in other files")):
                with pytest.raises(ValueError, match=rf"'{name}' is .*{why}"):
                    dataset_in(store, name)


class TestArrow:
    def test_columns(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        feather = pytest.importorskip("pyarrow.feather")
        columns = {
            "i": arrow.array(np.arange(1000, dtype="i2")),
            "text": arrow.array(["x" * n for n in range(1000)]),
            "nested": arrow.array([{"a": [1] * (n % 3), "b": float(n)} for n in range(1000)]),
            "list": arrow.FixedSizeListArray.from_arrays(arrow.array(np.arange(3000.0)), 3),
            "when": arrow.array(np.arange(1000).astype("M8[ms]")),
            "holes": arrow.array([None, *range(999)]),
            "last": arrow.array(np.arange(1000.0)),
        }
        table = arrow.table(columns)
        path = tmp_path / "x.feather"
        feather.write_feather(table, path, compression="uncompressed")
        with open_arrays(path) as arrays:
            assert list(arrays) == list(columns)
            same(arrays["i"], np.arange(1000, dtype="i2"))
            same(arrays["list"], np.arange(3000.0).reshape(1000, 3))
            same(arrays["when"], np.arange(1000).astype("M8[ms]"))
            same(arrays["last"], np.arange(1000.0))
            with pytest.raises(ValueError, match="column 'holes' has nulls"):
                arrays["holes"]
            with pytest.raises(TypeError, match="column 'text' is of type string"):
                arrays["text"]
        feather.write_feather(table, path, compression="uncompressed", chunksize=600)
        with open_arrays(path) as arrays:
            same(arrays["last/1"], np.arange(600, 1000.0))
        feather.write_feather(table, path, compression="lz4")
        with open_arrays(path) as arrays, pytest.raises(ValueError, match="'last' is compressed"):
            arrays["last"]
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match="write it again"):
            open_arrays(path)

    def test_times_where_they_are_as_long_as_numpys(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        feather = pytest.importorskip("pyarrow.feather")
        counts = np.arange(1000, dtype="i8") * 3600
        same_as = {
            "stamp": (arrow.timestamp("ns"), "M8[ns]"),
            "zoned": (arrow.timestamp("us", "Europe/Vienna"), "M8[us]"),
            "days": (arrow.date64(), "M8[ms]"),
            "clock": (arrow.time64("us"), "m8[us]"),
            "took": (arrow.duration("s"), "m8[s]"),
        }
        other = {
            "date32": (arrow.date32(), r"timestamp\('s'\)"),
            "time32": (arrow.time32("s"), r"time64\('us'\)"),
            "flags": (arrow.bool_(), "uint8"),
            "words": (arrow.dictionary(arrow.int32(), arrow.int64()), "indices"),
        }
        columns = {name: arrow.array(counts).view(kind) for name, (kind, _) in same_as.items()}
        short = arrow.array(counts.astype("i4"))
        columns["date32"] = short.view(arrow.date32())
        columns["time32"] = short.view(arrow.time32("s"))
        columns["flags"] = short.cast(arrow.bool_())
        columns["words"] = arrow.array(counts).dictionary_encode()
        path = tmp_path / "x.arrow"
        feather.write_feather(arrow.table(columns), path, compression="uncompressed")
        with open_arrays(path) as arrays:
            for name, (_, dtype) in same_as.items():
                same(arrays[name], counts.view(dtype))
            for name, (kind, remedy) in other.items():
                said = re.escape(str(kind).partition("<")[0])
                with pytest.raises(TypeError, match=rf"'{name}' is of type {said}.*{remedy}"):
                    arrays[name]

    def test_behind_a_column_that_has_any_number_of_buffers(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        columns = {
            "before": np.arange(100),
            "views": arrow.array(["text longer than twelve bytes"] * 100, arrow.string_view()),
            "behind": np.arange(100),
        }
        path = tmp_path / "x.arrow"
        table = arrow.table(columns)
        with arrow.ipc.new_file(path, table.schema) as file:
            file.write(table)
        with open_arrays(path) as arrays:
            assert list(arrays) == list(columns)
            same(arrays["before"], np.arange(100))
            with pytest.raises(ValueError, match=r"'behind' stands behind 'views' of type str"):
                arrays["behind"]

    def test_of_another_byte_order(self, tmp_path):
        """pyarrow writes none, so a file says of itself that it is one."""
        arrow = pytest.importorskip("pyarrow")
        feather = pytest.importorskip("pyarrow.feather")
        path = tmp_path / "x.arrow"
        table = arrow.table({"a": np.arange(9, dtype="i4"), "x": np.arange(9.0)})
        feather.write_feather(table, path, compression="uncompressed")
        whole = path.read_bytes()
        length = int.from_bytes(whole[-10:-6], "little")
        footer = bytearray(whole[-10 - length : -10])

        def at(place, form="<i"):
            return struct.unpack_from(form, footer, place)[0]

        # The second field of the root is the schema, whose first is the byte order. It is left out
        # for little: a table of fields that has it goes to the end, and so does what it says.
        root = at(0)
        field = root + at(root - at(root) + 6, "<H")
        schema = field + at(field)
        fields = schema - at(schema)
        table_of = bytearray(footer[fields : fields + at(fields, "<H")])
        assert struct.unpack_from("<H", table_of, 4) == (0,)
        footer += bytes(-len(footer) % 8)
        struct.pack_into("<H", table_of, 4, len(footer) - schema)
        footer += struct.pack("<hxxxxxx", 1) + table_of
        struct.pack_into("<i", footer, schema, schema - (len(footer) - len(table_of)))
        footer += bytes(-len(footer) % 8)
        path.write_bytes(
            whole[: -10 - length] + footer + len(footer).to_bytes(4, "little") + b"ARROW1"
        )
        expected = feather.read_table(path)
        assert expected["a"].to_pylist()[1] == 1 << 24
        with open_arrays(path) as arrays:
            for name in ("a", "x"):
                assert arrays[name].dtype.byteorder == ">"
                assert arrays[name].tolist() == expected[name].to_pylist()

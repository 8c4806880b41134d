"""Headers of files of arrays, changed at random, and what is made of them."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pagemove.containers.formats import contents_of
from pagemove.containers.layout import Layout, Packed
from pagemove.containers.npy import read_header
from pagemove.containers.reading import Reading
from pagemove.stores import FileStore

#: What no file of some kilobytes may take, whatever it says.
ROOM = 160 << 20

ARRAYS = {
    "a": np.arange(300.0).reshape(20, 15),
    "b": np.arange(7, dtype="u1"),
    "c": np.arange(64, dtype="f4"),
}
_WIDE = (b"\xff" * 8, bytes(8), b"\0" * 7 + b"\x7f")
_SYNTAX = (b"[", b"9", b"{", b'"', b"-", b"(")

Found = dict[str, Layout]
#: Of a file, what its own library reads of each array; without those that it refuses.
Owner = Callable[[bytes, Path], Mapping[str, np.ndarray]]


class Sample(NamedTuple):
    """A file, which of its bytes say what is in it, and what else reads it."""

    whole: bytes
    places: list[int]
    owner: Owner | None


def run(kind: str, count: int, seed: int, folder: Path) -> tuple[int, int]:
    """Read so many changed files; return how many were read, and how many refused.

    AssertionError where what was found is not within the file, is not what the format's own library
    reads, or an error does not name the file. To be run in a process of its own.
    """
    sample = SAMPLES[kind](folder / "sample")
    path = folder / "x"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _read(kind, sample.whole, path)  # which imports what reads it
        _limit_memory()
        chance = random.Random(seed)
        fine = refused = 0
        for number in range(count):
            data = _changed(chance, sample)
            found = _read(kind, data, path)
            if found is None:
                refused += 1
                continue
            fine += 1
            expected = sample.owner(data, path) if sample.owner else {}
            for name, layout in found.items():
                end = layout.offset + layout.nbytes
                assert 0 <= layout.offset <= end <= len(data), (number, name, layout)
                ours = np.ndarray(layout.shape, layout.dtype, data, layout.offset)
                theirs = expected.get(name)
                if theirs is not None and ours.size + theirs.size:
                    assert ours.shape == theirs.shape, (number, name)
                    assert ours.tobytes() == theirs.tobytes(), (number, name)
    return fine, refused


def _changed(chance: random.Random, sample: Sample) -> bytes:
    data = bytearray(sample.whole)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.choice(sample.places)
        if at >= len(data):
            break
        match chance.randrange(6):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                data[at : at + 8] = chance.choice(_WIDE)
            case 3:
                data[at : at + 1] = chance.choice(_SYNTAX)
            case 4:
                data[at : at + 4] = struct.pack("<i", chance.randrange(-200, 200))
            case 5:
                del data[max(chance.randrange(len(data)), 1) :]
    return bytes(data)


def _read(kind: str, data: bytes, path: Path) -> Found | None:
    """Say where arrays are; None: the whole file was refused."""
    path.write_bytes(data)
    with FileStore(path) as store:
        try:
            if kind == "npy":
                layout = read_header(store)
                if layout is None or layout.offset + layout.nbytes > len(data):
                    raise ValueError(f"{path} was truncated")
                return {"": layout}
            contents = contents_of(Reading(store))
        except (ValueError, TypeError) as error:
            _names(path, error)
            return None
        found: Found = {}
        for name in contents.names():
            try:
                layout_or_packed = contents.find(name)
            except (ValueError, TypeError) as error:
                _names(path, error)
                continue
            if not isinstance(layout_or_packed, Packed):
                found[name] = layout_or_packed
    return found


def _names(path: Path, error: Exception) -> None:
    if str(path) not in str(error):
        raise AssertionError(f"an error that does not name the file: {error!r}") from error


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _npz(path: Path) -> Sample:
    with path.open("wb") as file:
        np.savez(file, **ARRAYS)
    whole = path.read_bytes()
    heads = [at for at in range(len(whole)) if whole[at : at + 2] == b"PK"]
    places = [at for head in heads for at in range(head, min(head + 180, len(whole)))]
    return Sample(whole, places, None)


def _npy(path: Path) -> Sample:
    with path.open("wb") as file:
        np.save(file, ARRAYS["a"])
    return Sample(path.read_bytes(), list(range(128)), None)


def _safetensors(path: Path) -> Sample:
    from safetensors.numpy import load, save

    def owner(data: bytes, path: Path) -> Mapping[str, np.ndarray]:
        try:
            return dict(load(data))
        except Exception:  # it has many, and of each the file was refused
            return {}

    whole = save({name * 40: array for name, array in ARRAYS.items()})
    return Sample(whole, list(range(8 + struct.unpack_from("<Q", whole)[0])), owner)


def _gguf(path: Path) -> Sample:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["x", "yy"] * 20)
    for name in ("a", "c"):
        writer.add_tensor(name, ARRAYS[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = path.read_bytes()
    head = len(whole) - ARRAYS["a"].nbytes - ARRAYS["c"].nbytes
    return Sample(whole, list(range(head)), None)


def _hdf5(path: Path, version: str = "earliest") -> Sample:
    """Of the older kind of metadata, or of the newer, which has checksums."""
    import h5py

    with h5py.File(path, "w", libver=version) as file:
        for name, array in ARRAYS.items():
            file[f"group/{name}"] = array
        file["group/a"].attrs["units"] = "m"
        file.create_dataset("chunked", data=ARRAYS["a"], chunks=(5, 15), compression="gzip")

    refuses = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)

    def owner(data: bytes, path: Path) -> Mapping[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        with contextlib.suppress(*refuses), h5py.File(io.BytesIO(data), "r") as file:
            for name in (f"group/{name}" for name in ARRAYS):
                with contextlib.suppress(*refuses, MemoryError):
                    found[name] = np.asarray(file[name][()])
        return found

    whole = path.read_bytes()
    inside: set[int] = set()
    for array in ARRAYS.values():
        first = whole.find(array.tobytes())
        inside.update(range(first, first + array.nbytes))
    # Between what is said there are kilobytes of zeros, which nothing reads.
    places = [
        at
        for at in range(len(whole))
        if at not in inside and whole[max(at - 4, 0) : at + 5].strip(b"\0")
    ]
    return Sample(whole, places, owner)


def _hdf5_latest(path: Path) -> Sample:
    return _hdf5(path, "latest")


def _arrow(path: Path) -> Sample:
    import pyarrow
    from pyarrow import feather

    count = 1000
    columns = {
        "i": np.arange(count, dtype="i2"),
        "text": ["x" * (n % 5) for n in range(count)],
        "list": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.arange(3.0 * count)), 3),
        "nested": pyarrow.array([{"a": [1] * (n % 3), "b": float(n)} for n in range(count)]),
        "words": pyarrow.array(["a", "b"] * (count // 2)).dictionary_encode(),
        "when": np.arange(count).astype("M8[ms]"),
        "last": np.arange(float(count)),
    }
    table = pyarrow.table(columns).replace_schema_metadata({"key": "value"})
    feather.write_feather(table, str(path), compression="uncompressed", chunksize=600)
    whole = path.read_bytes()
    # The footer, and the messages: each begins with a mark, and says how long it is.
    footer = len(whole) - 10 - int.from_bytes(whole[-10:-6], "little")
    places = [*range(16), *range(footer, len(whole))]
    for at in range(8, footer, 8):
        if whole[at : at + 4] == b"\xff" * 4 and (
            0 < (length := struct.unpack_from("<i", whole, at + 4)[0]) < footer - at
        ):
            places += range(at, at + 8 + length)
    return Sample(whole, places, _by_pyarrow)


def _by_pyarrow(data: bytes, path: Path) -> Mapping[str, np.ndarray]:
    import pyarrow

    refuses = (ValueError, OSError, KeyError, TypeError, NotImplementedError, MemoryError)
    found: dict[str, np.ndarray] = {}
    try:
        with pyarrow.OSFile(str(path)) as source:
            file = pyarrow.ipc.open_file(source)
            for number in range(file.num_record_batches):
                try:
                    batch = file.get_batch(number)
                    batch.validate(full=True)
                except refuses:
                    continue
                for field, column in zip(batch.schema, batch.columns, strict=True):
                    one = file.num_record_batches == 1
                    found[field.name if one else f"{field.name}/{number}"] = _items(column)
    except refuses:
        pass
    return found


def _items(column: Any) -> np.ndarray:
    import pyarrow

    kind = column.type
    if pyarrow.types.is_fixed_size_list(kind):
        items = _items(column.flatten())
        return items.reshape(len(column), kind.list_size, *items.shape[1:])
    if pyarrow.types.is_fixed_size_binary(kind):
        return np.array(column.to_pylist(), f"V{kind.byte_width}")
    if pyarrow.types.is_time(kind) or pyarrow.types.is_date(kind):
        column = column.view(pyarrow.int64() if kind.bit_width == 64 else pyarrow.int32())
    return np.asarray(column.to_numpy(zero_copy_only=False))


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "npz": _npz,
    "npy": _npy,
    "safetensors": _safetensors,
    "gguf": _gguf,
    "hdf5": _hdf5,
    "hdf5 latest": _hdf5_latest,
    "arrow": _arrow,
}

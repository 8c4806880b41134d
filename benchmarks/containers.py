"""Files that hold arrays by name: opening one, the first row, a sum against the raw file, one item.

The files are sparse, but for the one that is summed.
"""

from __future__ import annotations

import gc
import io
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pagemove
from benchmarks._measure import Effort, Finding, free, spread
from benchmarks._paging import QUARTER, Way, in_turn, speed
from benchmarks._report import run_alone

_LARGE = 4 << 30
_TENSORS = 300
_OPEN_MS = 10
_SUM, _ITEM = 0.95, 1.0
_ITEMS = 20_000


def measure(effort: Effort) -> list[Finding]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        findings = _opened(folder, effort)
        findings += _summed(folder, effort)
        findings += _indexed(folder, effort)
    return findings


def _safetensors(path: Path, count: int, items: int) -> None:
    nbytes = 4 * items
    header = json.dumps(
        {
            f"layer.{n}.weight": {
                "dtype": "F32",
                "shape": [items],
                "data_offsets": [n * nbytes, (n + 1) * nbytes],
            }
            for n in range(count)
        }
    ).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + count * nbytes)


def _npz(path: Path, items: int) -> None:
    """Write an archive of one member that is a hole, as `numpy.savez` does one of that length."""
    head = io.BytesIO()
    said = {"descr": "<f4", "fortran_order": False, "shape": (items,)}
    np.lib.format.write_array_header_1_0(head, said)
    text, name = head.getvalue(), b"a.npy"
    nbytes = len(text) + 4 * items
    extra, wide = struct.pack("<HHQQ", 1, 16, nbytes, nbytes), 0xFFFFFFFF
    lengths = wide, wide, len(name), len(extra)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 45, 0, 0, 0, 0, 0, *lengths) + name + extra
    entry = struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, *lengths, 0, 0, 0, 0, 0
    )
    directory, at = entry + name + extra, len(local) + nbytes
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(directory), at)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, at + len(directory), 1)
    end += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(directory), wide, 0)
    with path.open("wb") as file:
        file.write(local + text)
        file.seek(at)
        file.write(directory + end)


def _hdf5(path: Path, items: int) -> bool:
    try:
        import h5py
    except ImportError:
        return False
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(
            file.id, b"a", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((items,)), properties
        )
    return True


def _now() -> tuple[int, int]:
    """Count the threads and the descriptors of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def _opening(path: Path, name: str) -> tuple[float, float]:
    """Return ms to open the file, and to have the first row of an array after that."""
    began = time.perf_counter_ns()
    arrays = pagemove.open_arrays(path, resident_limit="256MiB")
    opened = time.perf_counter_ns()
    assert arrays[name][0] == 0
    done = time.perf_counter_ns()
    arrays.close()
    return (opened - began) / 1e6, (done - opened) / 1e6


def _held(open: Callable[[], Any]) -> int:
    """Return how many threads and descriptors are held by what is opened."""
    before = sum(_now())
    held = open()
    count = sum(_now()) - before
    del held
    gc.collect()
    return count


def _opened(folder: Path, effort: Effort) -> list[Finding]:
    items = _LARGE // 4
    _safetensors(folder / "x.safetensors", _TENSORS, items // _TENSORS)
    _npz(folder / "x.npz", items)
    files = {
        "x.safetensors": ("layer.7.weight", f"{_TENSORS} tensors"),
        "x.npz": ("a", "one member"),
    }
    if _hdf5(folder / "x.h5", items):
        files["x.h5"] = ("a", "one data set")
    (folder / "raw").write_bytes(bytes(1 << 20))
    alone = _held(lambda: pagemove.open_array(folder / "raw", dtype="u1", resident_limit="256KiB"))
    findings = []
    for file, (name, note) in files.items():
        _opening(folder / file, name)
        times = [_opening(folder / file, name) for _ in range(effort.passes)]
        opened, first = (spread(column) for column in zip(*times, strict=True))
        note = f"4 GiB, {note}, header in the page cache"
        findings.append(
            Finding(f"open {file}", "the clock", opened, _OPEN_MS, unit="ms", note=note)
        )
        findings.append(Finding(f"first item of {file}", "the clock", first, None, unit="ms"))

        def whole(file: str = file, name: str = name) -> Any:
            arrays = pagemove.open_arrays(folder / file, resident_limit="256MiB")
            return arrays, arrays[name]

        held = spread([float(_held(whole) - alone)])
        findings.append(
            Finding(
                f"threads and descriptors of {file}", "those of a raw file", held, 1, unit="more"
            )
        )
    return findings


def _cached_alike(path: Path) -> None:
    """Have a file in the page cache as reading leaves it.

    What was written is there in pieces of the size that it was written in, and larger ones are read
    faster: an archive that numpy.savez wrote a sixth slower than a file of the same bytes.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 20):
            pass


def _summed(folder: Path, effort: Effort) -> list[Finding]:
    """Sum an array of a container at a limit of a quarter, and the same bytes of a raw file."""
    values = np.arange(effort.file // 8, dtype="f8")
    limit, expected = effort.file // QUARTER, float(values.sum())
    values.tofile(folder / "raw")
    np.savez(folder / "sum.npz", a=values)
    _safetensors(folder / "sum.safetensors", 1, effort.file // 4)
    with (folder / "sum.safetensors").open("r+b") as file:
        file.seek(-values.nbytes, os.SEEK_END)
        values.tofile(file)
    for name in ("raw", "sum.npz", "sum.safetensors"):
        _cached_alike(folder / name)
    files: dict[str, Callable[[], Any]] = {
        "stored npz member": lambda: pagemove.open_array(
            folder / "sum.npz", name="a", resident_limit=limit
        ),
        "safetensors tensor": lambda: pagemove.open_array(
            folder / "sum.safetensors", name="layer.0.weight", resident_limit=limit
        ).view("f8"),
        "raw file": lambda: pagemove.open_array(folder / "raw", dtype="f8", resident_limit=limit),
    }

    def total(opened: Callable[[], Any]) -> float:
        # Another region each time: two that are alike differ by a tenth, whatever is in them.
        array = np.asarray(opened())
        assert float(array.sum()) == expected
        began = time.process_time_ns()
        array.sum()
        return (time.process_time_ns() - began) / len(values)

    ways = [Way(name, lambda opened=opened: total(opened)) for name, opened in files.items()]
    samples = in_turn(ways, effort.passes)
    note = f"{effort.file >> 20} MiB at a quarter, CPU time"
    *ours, raw = files
    return [speed(samples, name, raw, _SUM, note) for name in ours]


def _indexed(folder: Path, effort: Effort) -> list[Finding]:
    """Read items one by one, of what is resident."""
    arrays = {
        "a[i] of a PagedArray": pagemove.open_array(folder / "sum.npz", name="a"),
        "numpy.memmap": np.memmap(folder / "raw", "f8", "r"),
    }

    def each(array: Any) -> float:
        began = time.perf_counter_ns()
        for index in range(_ITEMS):
            array[index]
        return (time.perf_counter_ns() - began) / _ITEMS

    ways = [Way(name, lambda array=array: each(array)) for name, array in arrays.items()]
    with free():
        samples = in_turn(ways, effort.passes)
    return [speed(samples, "a[i] of a PagedArray", "numpy.memmap", _ITEM)]


if __name__ == "__main__":
    run_alone(measure)

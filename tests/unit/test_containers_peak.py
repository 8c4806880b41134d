"""What a process grows by that goes through an array of a container larger than its limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pagemove import open_array, open_arrays
from support.children import newborn

pytestmark = pytest.mark.needs("paging")

M = 1 << 20
COUNT = 64 * M // 8
LIMIT = 4 * M
#: Beside the region: threads, the header, and what summing takes.
ROOM = 8 * M


def _npz(path: Path, values: np.ndarray) -> None:
    np.savez(path, a=values)


def _safetensors(path: Path, values: np.ndarray) -> None:
    pytest.importorskip("safetensors.numpy").save_file({"a": values}, path)


def _gguf(path: Path, values: np.ndarray) -> None:
    writer = pytest.importorskip("gguf").GGUFWriter(path, "llama")
    writer.add_tensor("a", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _hdf5(path: Path, values: np.ndarray) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        file["a"] = values


def _arrow(path: Path, values: np.ndarray) -> None:
    feather = pytest.importorskip("pyarrow.feather")
    table = pytest.importorskip("pyarrow").table({"a": values})
    feather.write_feather(table, str(path), compression="uncompressed", chunksize=COUNT)


FORMATS = {
    "x.npz": _npz,
    "x.safetensors": _safetensors,
    "x.gguf": _gguf,
    "x.h5": _hdf5,
    "x.feather": _arrow,
}


def _most() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _growth(path: Path) -> tuple[int, float]:
    with open_arrays(path, resident_limit=LIMIT) as arrays:
        assert len(arrays) == 1  # and its library is imported
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    before, total = _most(), 0.0
    for array in (
        open_arrays(path, resident_limit=LIMIT)["a"],
        open_array(f"{path}#a", resident_limit=LIMIT),
    ):
        total += float(np.asarray(array).sum())
    return _most() - before, total


@pytest.mark.parametrize(
    "name",
    [name if name == "x.npz" else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS],
)
def test_the_limit_is_what_a_process_grows_by(tmp_path, name):
    values = np.arange(COUNT, dtype="f8")
    FORMATS[name](tmp_path / name, values)
    grown, total = newborn(_growth, tmp_path / name)
    assert total == 2 * float(values.sum())
    # There are two regions.
    assert grown <= 2 * LIMIT + ROOM

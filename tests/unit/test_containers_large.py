"""Containers of more than 4 GiB, sparse: what their headers say of places beyond; what is read."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pagemove import open_array, open_arrays
from support.containers import same

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("no_leak")]

G = 1 << 30
MARK = np.arange(1000, dtype="<f8")
PAGING = {"block_size": "64KiB", "prefetch": "off"}
BLOCK = 64 << 10


def npz(path: Path) -> None:
    """Let zipfile write it, but for the items of the first member, which are a hole."""
    items = 5 * G
    with path.open("w+b") as file, zipfile.ZipFile(file, "w") as archive:
        head = np.lib.format.magic(1, 0)
        said = (
            f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({items},), }}".ljust(117) + "\n"
        )
        head += struct.pack("<H", len(said)) + said.encode()
        member = zipfile.ZipInfo("large.npy")
        member.header_offset = member.CRC = 0  # of what nobody reads whole
        member.file_size = member.compress_size = len(head) + items
        file.write(member.FileHeader(zip64=True) + head)
        # It is what zipfile has after it has written a member.
        archive.start_dir = file.seek(items, 1)
        archive.filelist.append(member)
        archive.NameToInfo[member.filename] = member
        archive._didModify = True
        with archive.open("mark.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, MARK)
    with np.load(path) as loaded:
        assert loaded["mark"].tobytes() == MARK.tobytes()
        assert loaded.zip.getinfo("mark.npy").header_offset > 5 * G


def safetensors(path: Path) -> None:
    """300 tensors, of which the last is not a hole."""
    each = 16 << 20
    header = {
        f"layer.{n}": {"dtype": "U8", "shape": [each], "data_offsets": [n * each, (n + 1) * each]}
        for n in range(299)
    }
    end = 299 * each
    header["large"] = {"dtype": "U8", "shape": [G], "data_offsets": [end, end + G]}
    end += G
    header["mark"] = {"dtype": "F64", "shape": [1000], "data_offsets": [end, end + MARK.nbytes]}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(end, 1)
        file.write(MARK)


def hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((5 * G,))
        h5py.h5d.create(file.id, b"large", h5py.h5t.NATIVE_UINT8, space, properties)
        file["mark"] = MARK


@pytest.mark.parametrize("make", [npz, safetensors, hdf5], ids=lambda make: make.__name__)
def test_places_beyond_4_gib_and_one_block_for_a_row(tmp_path, make):
    path = tmp_path / "large"
    make(path)
    assert path.stat().st_size > 5 * G
    assert path.stat().st_blocks * 512 < 1 << 20
    with open_arrays(path, resident_limit="1MiB", **PAGING) as arrays:
        same(arrays["mark"], MARK)
        assert arrays["large"].shape[0] >= G
        (region,) = arrays.regions
        before = region.stats().bytes_read
        assert arrays["large"][-1] == 0
        assert region.stats().bytes_read - before <= BLOCK
    array = open_array(path, name="mark", **PAGING)
    assert array[0] == 0
    assert array[-1] == 999
    assert array.region.stats().bytes_read <= BLOCK


@pytest.mark.parametrize("way", [open_array, open_arrays])
def test_the_first_row_of_a_stored_member_is_one_block_read(tmp_path, way):
    path = tmp_path / "x.npz"
    np.savez(path, first=np.zeros(100_000), a=np.arange(1 << 20, dtype="f8").reshape(-1, 128))
    if way is open_array:
        array = open_array(path, name="a", **PAGING)
    else:
        array = open_arrays(path, **PAGING)["a"]
    row = np.asarray(array[0])
    assert row.tolist() == list(range(128))
    # Where all arrays share a region a row can lie across two blocks.
    assert array.region.stats().bytes_read <= (BLOCK if way is open_array else 2 * BLOCK)

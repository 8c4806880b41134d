"""paging/create.py: arrays in stores that are there already."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.stores import CompressedStore, FileStore

pytestmark = pytest.mark.needs("paging")


STORES = {
    "compressed": lambda folder: CompressedStore(1 << 20),
    "file of blocks": lambda folder: CompressedStore(1 << 20, path=folder / "blocks"),
    "file": lambda folder: FileStore(_sized(folder / "file", 1 << 20), writable=True),
}


def _sized(path: Path, nbytes: int) -> Path:
    path.write_bytes(b"")
    os.truncate(path, nbytes)
    return path


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("fill", [None, 0, 7])
def test_in_any_store_that_can_be_written(tmp_path, kind, fill):
    with STORES[kind](tmp_path) as store:
        array = pagemove.create_array(
            store, (500, 250), "i8", order="F", fill=fill, resident_limit="256KiB"
        )
        assert array.flags.f_contiguous
        assert array.min() == array.max() == (fill or 0)
        array[3] = 9
        array.flush()
        assert int(array.sum()) == 125_000 * (fill or 0) + 250 * (9 - (fill or 0))
        region = array.region
        del array
        region.close()


def test_a_store_that_is_too_short_or_only_read_is_refused(tmp_path):
    path = _sized(tmp_path / "file", 1000)
    with FileStore(path, writable=True) as store, pytest.raises(ValueError, match="needs 1008"):
        pagemove.create_array(store, 126, "f8")
    with FileStore(path) as store, pytest.raises(ValueError, match="read-only"):
        pagemove.create_array(store, 125, "f8")


@pytest.mark.parametrize(
    ("paging", "block"),
    [
        ({}, 256 << 10),
        ({"resident_limit": None}, 256 << 10),
        ({"resident_limit": "100MiB"}, 256 << 10),
        ({"resident_limit": "unlimited"}, 256 << 10),
        ({"resident_limit": "1MiB"}, 64 << 10),
        ({"resident_limit": "100MiB", "block_size": 4096}, 4096),
    ],
)
def test_blocks_that_suit_writing_in_order(tmp_path, paging, block):
    array = pagemove.create_array(tmp_path / "x.npy", 1 << 20, "f8", **paging)
    assert array.region.block_size == block
    array[:] = 1.5
    array.flush()
    assert (np.load(tmp_path / "x.npy") == 1.5).all()


@pytest.mark.parametrize("name", ["x.npz", "x.H5", "x.zarr", "x.safetensors"])
def test_no_raw_items_under_the_name_of_a_container(tmp_path, name):
    with pytest.raises(ValueError, match=r"would hold raw items.*name it \.npy"):
        pagemove.create_array(tmp_path / name, 10, "f8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("limit", "block"),
    [("95MiB", 256 << 10), ("96MiB", 2 << 20), (lambda: pagemove.Budget("100MiB"), 2 << 20)],
)
def test_huge_blocks_where_the_array_is_larger_than_its_limit(tmp_path, limit, block):
    limit = limit() if callable(limit) else limit
    array = pagemove.create_array(tmp_path / "x.npy", 16 << 20, "f8", resident_limit=limit)
    assert array.region.block_size == block
    array[-1] = 1.5
    array.close()
    assert float(np.load(tmp_path / "x.npy", mmap_mode="r")[-1]) == 1.5

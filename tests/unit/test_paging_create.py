"""paging/create.py: arrays in stores that are there already."""

from __future__ import annotations

import os
from pathlib import Path

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

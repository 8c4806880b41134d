"""Dask over paged arrays: no byte is read to name or to slice one.

In an interpreter of its own each: Dask's pools and clusters keep descriptors open.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import pagemove
from pagemove import open_array, region_of
from support.children import newborn

pytestmark = pytest.mark.needs("dask")

NUMBERS = np.arange(400_000, dtype=np.int64).reshape(2000, 200)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "numbers.npy", NUMBERS)
    return tmp_path / "numbers.npy"


def read(array):
    return region_of(array).stats().bytes_read


def test_dasks_own_from_array_reads_nothing(path):
    newborn(_own_from_array, path)


def _own_from_array(path):
    array = open_array(path, resident_limit="1MiB")
    again = open_array(path, resident_limit="1MiB")
    import dask.array as da  # only now: the arrays are there already

    lazy, other = (da.from_array(each, chunks=(500, 200)) for each in (array, again))
    assert read(array) == 0
    assert len(pickle.dumps(lazy.dask)) < 10 << 10
    assert lazy.name == other.name
    assert lazy.name != da.from_array(array[::-1], chunks=(500, 200)).name
    assert int(lazy.sum().compute(scheduler="threads")) == NUMBERS.sum()
    assert int(lazy.sum().compute(scheduler="processes")) == NUMBERS.sum()


def test_every_other_copy_is_one(path):
    array = open_array(path)
    assert type(array.copy()) is np.ndarray
    assert array.copy().flags.writeable


def test_names_and_sizes(path):
    newborn(_names_and_sizes, path)


def _names_and_sizes(path):
    from dask.base import tokenize
    from dask.sizeof import sizeof

    array = open_array(path)
    before = tokenize(array)
    assert tokenize(array) == before
    assert sizeof(array) < 10_000
    assert sizeof(array + 1) >= NUMBERS.nbytes
    np.save(path, NUMBERS + 1)
    changed = open_array(path)
    assert tokenize(changed) != before
    assert tokenize(np.array(changed)) == tokenize(NUMBERS + 1)
    private = open_array(path, mode="c")
    assert tokenize(private) != tokenize(open_array(path, mode="c"))


class TestFromArray:
    def test_is_equal(self, path):
        newborn(_is_equal, path)

    def test_chunks_are_whole_blocks_along_the_longest_steps(self, tmp_path):
        newborn(_whole_blocks, tmp_path / "big")

    @pytest.mark.slow
    def test_a_local_cluster(self, path):
        newborn(_in_a_cluster, path)


def _is_equal(path):
    from pagemove.dask import from_array

    array = open_array(path, resident_limit="1MiB")
    lazy = from_array(array[::-1, ::2], chunks=(300, 33))
    assert read(array) == 0
    assert (lazy.compute(scheduler="threads") == NUMBERS[::-1, ::2]).all()
    assert lazy.name == from_array(pagemove.reference(array[::-1, ::2]), chunks=(300, 33)).name
    assert int(from_array(array[5, 6, ...]).compute(scheduler="threads")) == NUMBERS[5, 6]
    swapped = np.dtype({"names": ["x", "y"], "formats": ["i4", "i4"], "offsets": [4, 0]})
    records = from_array(array.reshape(-1).view(swapped), chunks=1000)
    assert (records.compute(scheduler="threads")["x"] == NUMBERS.reshape(-1) >> 32).all()


def _whole_blocks(path):
    from pagemove.dask import from_array

    with open(path, "wb") as file:
        file.truncate(1 << 40)
    array = open_array(path, dtype="u1", shape=(1 << 20, 1 << 20))
    lazy = from_array(array)
    rows, columns = lazy.chunks
    assert columns == (1 << 20,)
    assert len(rows) <= 512
    assert rows[0] * (1 << 20) % region_of(array).block_size == 0
    assert len(pickle.dumps(lazy.dask)) < 10 << 10
    assert from_array(array.T).chunks == (columns, rows)
    assert read(array) == 0


def _in_a_cluster(path):
    import dask.array as da
    from dask.distributed import Client, LocalCluster

    from pagemove.dask import from_array

    array = open_array(path, resident_limit="512KiB", block_size=4096)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster):
        for make in (from_array, da.from_array):
            assert int(make(array, chunks=(250, 200)).sum().compute()) == NUMBERS.sum()
        parts = from_array(array, chunks=(250, 200))
        resident = parts.map_blocks(_resident, chunks=(1, 1), dtype=np.int64).compute()
    assert resident.shape == (8, 1)
    assert ((resident > 0) & (resident <= 512 << 10)).all()
    assert read(array) == 0


def _resident(chunk):
    chunk.sum()
    return np.array([[region_of(chunk).stats().resident_nbytes]])


def test_joblib(path):
    pytest.importorskip("joblib", reason="joblib is not installed")
    assert newborn(_by_joblib, path) == [
        ("PagedArray", int(NUMBERS[at : at + 500].sum())) for at in range(0, 2000, 500)
    ]


def _by_joblib(path):
    import joblib

    array = open_array(path, resident_limit="1MiB")
    parts = [array[at : at + 500] for at in range(0, 2000, 500)]
    return joblib.Parallel(2)(joblib.delayed(_sum)(part) for part in parts)


def _sum(array):
    return type(array).__name__, int(array.sum())

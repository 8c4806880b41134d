"""Dask over paged arrays: no byte is read to name or to slice one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import pagemove
from pagemove import open_array, region_of

da = pytest.importorskip("dask.array", reason="dask is not installed")

NUMBERS = np.arange(400_000, dtype=np.int64).reshape(2000, 200)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "numbers.npy", NUMBERS)
    return tmp_path / "numbers.npy"


def read(array):
    return region_of(array).stats().bytes_read


def test_dasks_own_from_array_reads_nothing(path):
    array = open_array(path, resident_limit="1MiB")
    lazy = da.from_array(array, chunks=(500, 200))
    assert read(array) == 0
    assert len(pickle.dumps(lazy.dask)) < 10 << 10
    assert (
        lazy.name == da.from_array(open_array(path, resident_limit="1MiB"), chunks=(500, 200)).name
    )
    assert lazy.name != da.from_array(array[::-1], chunks=(500, 200)).name
    assert int(lazy.sum().compute(scheduler="threads")) == NUMBERS.sum()
    assert int(lazy.sum().compute(scheduler="processes")) == NUMBERS.sum()


def test_every_other_copy_is_one(path):
    array = open_array(path)
    assert type(array.copy()) is np.ndarray
    assert array.copy().flags.writeable


def test_it_counts_as_small(path):
    from dask.sizeof import sizeof

    array = open_array(path)
    assert sizeof(array) < 10_000
    assert sizeof(array + 1) >= NUMBERS.nbytes


def test_names_change_with_the_file(path):
    from dask.base import tokenize

    array = open_array(path)
    before = tokenize(array)
    assert tokenize(array) == before
    np.save(path, NUMBERS + 1)
    assert tokenize(open_array(path)) != before
    private = open_array(path, mode="c")
    assert tokenize(private) != tokenize(open_array(path, mode="c"))
    assert tokenize(np.asarray(array)[:5].copy()) == tokenize(NUMBERS[:5])


class TestFromArray:
    def test_is_equal(self, path):
        from pagemove.dask import from_array

        array = open_array(path, resident_limit="1MiB")
        lazy = from_array(array[::-1, ::2], chunks=(300, 33))
        assert read(array) == 0
        assert (lazy.compute(scheduler="threads") == NUMBERS[::-1, ::2]).all()
        assert lazy.name == from_array(pagemove.reference(array[::-1, ::2]), chunks=(300, 33)).name

    def test_chunks_are_whole_blocks_along_the_longest_steps(self, tmp_path):
        from pagemove.dask import from_array

        with (tmp_path / "big").open("wb") as file:
            file.truncate(1 << 40)
        array = open_array(tmp_path / "big", dtype="u1", shape=(1 << 20, 1 << 20))
        lazy = from_array(array)
        rows, columns = lazy.chunks
        assert columns == (1 << 20,)
        assert len(rows) <= 512
        assert rows[0] * (1 << 20) % region_of(array).block_size == 0
        assert len(pickle.dumps(lazy.dask)) < 10 << 10
        assert from_array(array.T).chunks == (columns, rows)
        assert read(array) == 0

    @pytest.mark.slow
    def test_a_local_cluster(self, path):
        from dask.distributed import Client, LocalCluster

        from pagemove.dask import from_array

        array = open_array(path, resident_limit="512KiB", block_size=4096)
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(**options) as cluster, Client(cluster) as client:
            assert int(from_array(array, chunks=(250, 200)).sum().compute()) == NUMBERS.sum()
            assert int(da.from_array(array, chunks=(250, 200)).sum().compute()) == NUMBERS.sum()
            most = client.run(_largest)
        assert all(0 < each <= 512 << 10 for each in most.values())
        assert read(array) == 0


def _largest():
    from pagemove.paging import reference

    return max(each.stats().resident_nbytes for each in list(reference._open.values()))


def test_joblib(path):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    array = open_array(path, resident_limit="1MiB")
    parts = [array[at : at + 500] for at in range(0, 2000, 500)]
    found = joblib.Parallel(2)(joblib.delayed(_sum)(part) for part in parts)
    assert found == [
        ("PagedArray", int(NUMBERS[at : at + 500].sum())) for at in range(0, 2000, 500)
    ]


def _sum(array):
    return type(array).__name__, int(array.sum())

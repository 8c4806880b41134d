"""Dask over paged arrays: no byte is read to name or to slice one.

In an interpreter of its own what starts processes, since Dask's clusters keep descriptors open, and
what depends on when Dask is imported. Its threads end with the pool that a test has it use.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pagemove
from pagemove import open_array, region_of
from pagemove.paging.results import PagedData
from support.children import newborn

pytestmark = pytest.mark.needs("dask")

NUMBERS = np.arange(400_000, dtype=np.int64).reshape(2000, 200)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "numbers.npy", NUMBERS)
    return tmp_path / "numbers.npy"


@pytest.fixture
def pool() -> Iterator[None]:
    """Have Dask compute in these threads, which are gone after the test."""
    import dask

    with ThreadPoolExecutor(4) as pool, dask.config.set(pool=pool):
        yield


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


@pytest.mark.slow  # in the lean suite processes of joblib and of a cluster open such arrays
def test_dasks_own_from_array_in_its_processes(path):
    newborn(_in_processes, path)


def _in_processes(path):
    import dask.array as da

    lazy = da.from_array(open_array(path, resident_limit="1MiB"), chunks=(500, 200))
    assert int(lazy.sum().compute(scheduler="processes")) == NUMBERS.sum()


def test_every_other_copy_is_one(path):
    array = open_array(path)
    assert type(array.copy()) is np.ndarray
    assert array.copy().flags.writeable


def test_names_and_sizes(path):
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
    def test_is_equal(self, path, pool):
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

    def test_chunks_are_whole_blocks_along_the_longest_steps(self, tmp_path):
        from pagemove.dask import from_array

        path = tmp_path / "big"
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

    def test_the_next_task_finds_it_open(self, path):
        newborn(_found_open, path)

    @pytest.mark.slow
    def test_a_local_cluster(self, path):
        newborn(_in_a_cluster, path)


def _found_open(path):
    import weakref

    import pagemove.dask as paged
    from support import wait_for

    paged._IDLE_SECONDS = 0.2
    lazies = [
        paged._Lazy(pagemove.reference(open_array(path, resident_limit=limit)))
        for limit in ("1MiB", "2MiB", "3MiB")
    ]
    regions = []
    for lazy in lazies:
        assert lazy[5, 6] == NUMBERS[5, 6]
        region = region_of(lazy[:])
        assert region.stats().faults == 1  # of both
        regions.append(weakref.ref(region))
        del region
    # No more than two are kept, and none for long.
    assert regions[0]() is None
    wait_for(lambda: not any(region() for region in regions))
    assert not paged._lately._until
    assert lazies[0][7, 8] == NUMBERS[7, 8]
    child = os.fork()
    if not child:
        os._exit(int(lazies[0][8, 9] != NUMBERS[8, 9]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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


class TestPagedData:
    def test_arrays_are_compressed_when_they_leave(self):
        with PagedData("256KiB", capacity="64MiB", at_least="4KiB", block_size=4096) as data:
            for number in range(20):
                data[number] = np.full((100, 100), number, float)
            assert all((data[number] == number).all() for number in range(20))
            stats = data.region.stats()
            assert stats.evicted > 0
            assert stats.resident_nbytes <= 256 << 10
            assert sorted(data) == list(range(20))

    def test_memory_is_free_again_with_the_last_view(self):
        with PagedData("1MiB", capacity="1MiB", at_least="4KiB", block_size=4096) as data:
            data["first"] = np.ones(64 << 10)
            address = data["first"].__array_interface__["data"][0]
            view = data["first"][5:7]
            del data["first"]
            data["second"] = np.zeros(64 << 10)
            assert data["second"].__array_interface__["data"][0] != address
            assert view.tolist() == [1, 1]
            del view
            data["third"] = np.full(64 << 10, 3.0)
            assert data["third"].__array_interface__["data"][0] == address
            data["fourth"] = fourth = np.full(64 << 10, 4.0)  # for which there is no room
            assert data["fourth"] is fourth
            assert (data["second"].sum(), data["third"].sum()) == (0, 3 * (64 << 10))

    def test_what_is_put_in(self):
        with PagedData("1MiB", capacity="16MiB", at_least="4KiB") as data:
            fortran = np.asfortranarray(np.arange(10_000).reshape(100, 100))
            frozen = np.arange(10_000)
            frozen.flags.writeable = False
            same = ["text", np.arange(3), np.array([None] * 1000), open_array]
            data.update(
                {"fortran": fortran, "frozen": frozen}, **dict(zip("abcd", same, strict=True))
            )
            assert data["fortran"].flags.f_contiguous
            assert (data["fortran"] == fortran).all()
            assert not data["frozen"].flags.writeable
            assert all(data[key] is value for key, value in zip("abcd", same, strict=True))
            data["view"] = data["fortran"][3:]
            assert np.shares_memory(data["view"], data["fortran"])

    def test_of_workers(self, tmp_path):
        """They also store an array in parts: a cluster takes seconds to start."""
        newborn(_paged_results, tmp_path / "stored.npy")


def _paged_results(path):
    import dask.array as da
    from dask.distributed import Client, LocalCluster, wait

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    kept = PagedData, {"resident_limit": "1MiB", "capacity": "1GiB", "at_least": "64KiB"}
    with LocalCluster(**options, data=kept) as cluster, Client(cluster) as client:
        numbers = da.arange(1_000_000, chunks=50_000).persist()
        wait(numbers)
        held = client.run(lambda dask_worker: dask_worker.data.region.stats().resident_nbytes)
        assert int((numbers + numbers[::-1]).sum().compute()) == 999_999 * 1_000_000
        _stored(path, (300, 70))
    assert len(held) == 2
    assert all(0 < each <= 1 << 20 for each in held.values())


class TestToStore:
    @pytest.mark.parametrize(
        "chunks", [(300, 70), pytest.param((2000, 200), marks=pytest.mark.slow)]
    )
    def test_is_equal(self, tmp_path, pool, chunks):
        _stored(tmp_path / "stored.npy", chunks)

    def test_what_cannot_be(self, tmp_path):
        import dask.array as da

        from pagemove.dask import to_store

        numbers = da.arange(10)
        with pytest.raises(ValueError, match="call compute_chunk_sizes"):
            to_store(numbers[numbers > 5], tmp_path / "x.npy")
        with pytest.raises(ValueError, match=r"has to end with \.npy"):
            to_store(numbers, tmp_path / "x.raw")
        assert not any(tmp_path.iterdir())


def _stored(path, chunks):
    import dask.array as da

    from pagemove.dask import to_store

    array = to_store(da.from_array(NUMBERS, chunks=chunks), path, resident_limit="1MiB")
    assert (array == NUMBERS).all()
    assert (np.load(path) == NUMBERS).all()
    assert not array.flags.writeable
    again = to_store(da.from_array(NUMBERS[:, 0] * 2, chunks=100), path)
    assert (again == NUMBERS[:, 0] * 2).all()


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


@pytest.mark.usefixtures("pool")
class TestChunksThatAreNotAsSaid:
    def test_another_dtype_is_refused_and_what_was_there_stays(self, tmp_path):
        import dask.array as da

        import pagemove.dask as paged

        path = tmp_path / "kept.npy"
        np.save(path, np.arange(10.0))
        wrong = da.zeros(10, chunks=5, dtype="f4").map_blocks(
            lambda block: block + 1.5, dtype="i4", meta=np.empty(0, "i4")
        )
        with pytest.raises(ValueError, match=r"chunk at \([05],\) is float32.*says int32"):
            paged.to_store(wrong, path)
        assert (np.load(path) == np.arange(10.0)).all()
        assert [each.name for each in tmp_path.iterdir()] == ["kept.npy"]

    def test_an_array_may_be_computed_from_what_it_replaces(self, tmp_path):
        import dask.array as da

        import pagemove.dask as paged

        path = tmp_path / "numbers.npy"
        np.save(path, np.arange(1000.0))
        source = da.from_array(open_array(path), chunks=100)
        done = paged.to_store(source * 2, path)
        assert (done == np.arange(1000.0) * 2).all()

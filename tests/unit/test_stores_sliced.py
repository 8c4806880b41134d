"""stores/sliced.py and what it stands on: arrays in chunks, whatever they are in."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import StoreError
from pagemove.paging.arrays import under_one_limit
from pagemove.paging.decoded import with_room
from pagemove.paging.sources import Source
from pagemove.stores import SlicedStore
from pagemove.stores.boxes import boxes, parts, tile_of
from pagemove.stores.chunked import chunked_store
from pagemove.testing import StoreContract
from support.containers import ARRAYS, same

KINDS = ["zarr 2", "zarr 3", "zarr 3 sharded", "hdf5"]
SHAPE, SMALL, CHUNKS = (140, 30, 11), (55, 12, 5), (25, 7, 4)


def write(folder: Path, kind: str, values: Any, chunks: Any, **how: Any) -> str:
    """Write an array by the library that owns the format; return its name."""
    library = pytest.importorskip("h5py" if kind == "hdf5" else "zarr")
    if kind == "hdf5":
        with library.File(folder / "x.h5", "w") as file:
            file.create_dataset("group/data", data=values, chunks=chunks, compression="gzip")
        return f"{folder}/x.h5#group/data"
    group = library.open_group(str(folder / "x.zarr"), mode="w", zarr_format=int(kind[5]))
    if "sharded" in kind:
        how["shards"] = tuple(2 * size for size in chunks)
    made = group.create_array(
        "group/data", shape=values.shape, dtype=values.dtype, chunks=chunks, **how
    )
    made[...] = values
    return f"{folder}/x.zarr#group/data"


def values_of(shape: Any, dtype: str = "f8") -> Any:
    return np.random.default_rng(5).integers(0, 1 << 20, shape).astype(dtype)


class _Chunked(StoreContract):
    kind: str

    def make_store(self, contents, *, writable):
        name = write(self.folder, self.kind, np.frombuffer(contents, np.uint8), (1000,))
        store = chunked_store(name, writable=writable)
        assert store is not None
        return store


class TestZarr3(_Chunked):
    kind = "zarr 3"


@pytest.mark.slow
class TestZarr2(_Chunked):
    kind = "zarr 2"


class TestHdf5(_Chunked):
    kind = "hdf5"


def test_boxes_are_the_items_in_their_order():
    for shape in [(5,), (3, 4), (2, 3, 4), (4, 1, 3, 2), (1, 1), ()]:
        items = np.arange(math.prod(shape)).reshape(shape)
        for first, last in itertools.combinations(range(items.size + 1), 2):
            found: list[int] = []
            for box in boxes(shape, first, last):
                place = tuple(map(slice, box.start, box.stop))
                assert items[place].shape == box.shape
                assert items[place].flat[0] == box.first
                found += items[place].ravel().tolist()
                covered = np.zeros(box.shape, int)
                for part in parts(box, tuple(2 for _ in shape)):
                    covered[part.in_box] += 1
                assert (covered == 1).all()
            assert found == list(range(first, last))


@pytest.mark.parametrize(
    ("shape", "chunks", "least", "most", "tile"),
    [
        ((100, 50), (10, 5), 0, 1 << 20, (10, 50)),  # a row of chunks
        ((100, 50), (10, 5), 2000, 1 << 20, (40, 50)),  # rows that are small, together
        ((100, 50), (10, 5), 0, 250, (10, 25)),  # as much of a row as may be
        ((100, 50, 20), (10, 50, 2), 0, 20_000, (10, 50, 20)),
        ((100, 50), (200, 70), 0, 10, (100, 50)),
        ((), (), 0, 10, ()),
    ],
)
def test_tiles_are_rows_of_chunks(shape, chunks, least, most, tile):
    assert tile_of(shape, chunks, 1, least, most) == tile


@pytest.mark.parametrize("dtype", ["f8", ">i4", "S7"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_range_of_bytes_is_right(tmp_path, kind, dtype):
    if kind != "hdf5" and dtype == "S7":
        pytest.skip("zarr has no name for these items in version 3, and warns of it")
    values = values_of(SHAPE, dtype)
    with chunked_store(write(tmp_path, kind, values, CHUNKS)) as store:
        # zarr 3 has the order of bytes in a codec, and not in the dtype.
        assert (store.shape, store.dtype) == (SHAPE, values.dtype.newbyteorder("=")) or (
            not kind.startswith("zarr 3") and store.dtype == values.dtype
        )
        expected = values.astype(store.dtype).tobytes()
        numbers = np.random.default_rng(1)
        for _ in range(60):
            first, last = sorted(numbers.integers(0, len(expected), 2).tolist())
            buffer = bytearray(last - first)
            store.read_into(first, buffer)
            assert buffer == expected[first:last]


@pytest.mark.needs("paging")
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind != "hdf5" else ()) for kind in KINDS],
)
def test_what_is_written_is_all_that_changes(tmp_path, kind):
    values = values_of(SMALL)
    name = write(tmp_path, kind, values, CHUNKS)
    with chunked_store(name, writable=True) as store:
        expected = bytearray(values.tobytes())
        numbers = np.random.default_rng(2)
        for _ in range(8):
            first, last = sorted(numbers.integers(0, len(expected), 2).tolist())
            last = min(last, first + 3000)
            data = numbers.bytes(last - first)
            # Bytes that are no item of their own, too.
            store.write(first, data)
            expected[first:last] = data
        store.flush()
    with chunked_store(name) as store:
        found = bytearray(store.nbytes)
        store.read_into(0, found)
        assert found == expected
    with chunked_store(name, writable=True) as store:
        array = pagemove.open_array(store, mode="r+", resident_limit="256KiB")
        assert array.shape == SMALL
        array[3:40, 5] = 7.5
        array.flush()
        del array
    again = np.frombuffer(expected, "f8").reshape(SMALL).copy()
    again[3:40, 5] = 7.5
    with chunked_store(name) as store:
        array = pagemove.open_array(store, resident_limit="256KiB")
        assert np.asarray(array).tobytes() == again.tobytes()


@pytest.mark.needs("paging")
def test_a_slab_is_decoded_once_for_all_its_blocks(tmp_path):
    values = values_of((400, 1000))  # 3.2 MB; chunk rows of 400 kB
    name = write(tmp_path, "hdf5", values, (50, 100))
    with chunked_store(name, chunks=(150, 100)) as store:
        slabs = -(-400 // store.slab[0])
        array = pagemove.open_array(store, resident_limit="512KiB", block_size=4096)
        assert array.sum() == values.sum()
        assert array.region.stats().store["decoded"] == slabs
        # A walk down columns goes through all blocks each time, and nothing is decoded again.
        for column in range(0, 1000, 250):
            assert array[:, column].sum() == values[:, column].sum()
        stats = array.region.stats()
        assert stats.store["decoded"] == slabs
        assert stats.bytes_read > 2 * array.nbytes
    # Slabs that do not fit are decoded once a walk, not once a block.
    with chunked_store(name, cache=2 << 20) as store:
        slabs = -(-400 // store.slab[0])
        assert store.slab[1:] == (1000,)
        assert store.nbytes > 3 << 20
        array = pagemove.open_array(store, resident_limit="256KiB", block_size=4096, prefetch="off")
        for column in range(0, 1000, 250):
            assert array[:, column].sum() == values[:, column].sum()
        stats = array.region.stats().store
        assert slabs < stats["decoded"] <= 4 * slabs
        assert stats["kept_nbytes"] <= 2 << 20


@pytest.mark.needs("paging")
@pytest.mark.parametrize("kind", ["zarr 3", "hdf5"])
def test_what_is_kept_decoded_counts_against_the_limit(tmp_path, kind):
    values = values_of((400, 2000))  # 6.4 MB in rows of chunks of 320 kB
    path = write(tmp_path, kind, values, (20, 500))
    limit = 2 << 20
    array = pagemove.open_array(path, resident_limit=limit, block_size=4096)
    assert array.sum() == values.sum()
    stats = array.region.stats()
    assert 0 < stats.store["kept_nbytes"] <= limit // 2
    assert array.region.resident_limit + stats.store["kept_nbytes"] <= limit
    assert stats.store["decoded_nbytes"] == values.nbytes
    # Two chunks are kept in any case, and the region has its blocks.
    array = pagemove.open_array(path, resident_limit="64KiB", block_size=4096)
    assert array.region.resident_limit == 16 << 10
    assert array.sum() == values.sum()
    assert array.region.stats().store["kept_nbytes"] <= 2 * 20 * 500 * 8


@pytest.mark.needs("paging")
def test_what_is_kept_decoded_of_several_counts_against_the_limit_of_all(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    values = values_of((200, 1000))
    for name in ("a", "b"):
        made = group.create_array(name, shape=values.shape, dtype="f8", chunks=(10, 1000))
        made[...] = values
    limit = 4 << 20
    with pagemove.open_arrays(
        tmp_path / "x.zarr", resident_limit=limit, block_size=4096, store_timeout=60
    ) as arrays:
        for name in ("a", "b"):
            assert arrays[name].sum() == values.sum()
        kept = [region.stats().store["kept_nbytes"] for region in arrays.regions]
        (budget,) = {region.budget for region in arrays.regions}
        assert min(kept) > 0
        assert budget.limit >= limit // 2
        assert budget.limit + sum(kept) <= limit


@pytest.mark.needs("paging")
def test_what_is_kept_decoded_counts_against_a_budget_of_the_user(tmp_path):
    """Which says the same of its limit, and has all of it back when the arrays are closed."""
    paths = []
    values = values_of((400, 2000))  # in rows of chunks of 320 kB
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(write(tmp_path / name, "hdf5", values, (20, 500)))
    limit = 4 << 20
    own = pagemove.Budget(limit)
    paging = {"resident_limit": own, "block_size": 4096, "store_timeout": 60}
    arrays = [pagemove.open_array(path, **paging) for path in paths]
    for _ in range(2):
        for array in arrays:
            assert array.sum() == values.sum()
            stats = own.stats()
            kept = [each.region.stats().store["kept_nbytes"] for each in arrays]
            assert min(kept[:1]) > 0
            assert sum(kept) <= stats.kept_nbytes <= limit // 2
            assert stats.resident_nbytes <= stats.leased_nbytes <= limit - stats.kept_nbytes
    assert own.limit == stats.limit == limit
    own.resize(2 * limit)
    assert own.limit == own.stats().limit == 2 * limit
    before = own.stats().kept_nbytes
    with pytest.raises(ValueError, match=r"beside the .* for what is kept decoded"):
        own.resize(before + 4096)
    arrays[0].close()
    assert 0 < own.stats().kept_nbytes < before
    del array, arrays
    assert own.stats().kept_nbytes == 0
    assert own.counters()["total"] == own.limit == 2 * limit
    # Where that would leave the regions little, it comes on top.
    small = pagemove.Budget("256KiB")
    array = pagemove.open_array(paths[0], **{**paging, "resident_limit": small})
    assert array.sum() == values.sum()
    assert (small.limit, small.stats().kept_nbytes) == (256 << 10, 0)


class Kept:
    """What `with_room` asks of a store: to keep so many bytes at most, two chunks at least."""

    def _keep_at_most(self, nbytes: int) -> int:
        self.most = max(nbytes, 2 << 20)
        return self.most


def test_many_arrays_of_a_file_keep_what_their_limit_has(monkeypatch):
    paging = under_one_limit({"resident_limit": "64MiB"})
    budget: Any = paging["resident_limit"]
    stores = [Kept() for _ in range(12)]
    for store in stores:
        with_room(store, paging)
    assert budget.limit + sum(store.most for store in stores) == 64 << 20
    assert stores[-1].most == 2 << 20

    def resize(*_: Any) -> None:
        raise ValueError("less than what is pinned")

    monkeypatch.setattr(pagemove.Budget, "resize", resize)
    before = budget.limit
    assert with_room(Kept(), paging) == paging
    assert budget.limit == before


def counted(values: Any, calls: list[Any]) -> Any:
    """Make something that can be sliced, and is no array of any library."""

    class Sliceable:
        shape, dtype = values.shape, values.dtype

        def __getitem__(self, key: Any) -> Any:
            calls.append(key)
            return values[key]

    return Sliceable()


def test_threads_do_not_decode_the_same_slab_twice():
    calls: list[Any] = []
    values = values_of((64, 1000))
    with SlicedStore(lambda: counted(values, calls), chunks=(64, 1000)) as store:
        barrier = threading.Barrier(8)

        def read() -> None:
            barrier.wait()
            store.read_into(0, bytearray(1000))

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(calls) == 1


def dask_array() -> Any:
    dask = importlib.import_module("dask.array")
    return dask.from_array(values_of((60, 40)), chunks=(13, 40))


def xarray_variable() -> Any:
    xarray = importlib.import_module("xarray")
    return xarray.Dataset({"t": (("x", "y"), values_of((60, 40)))})["t"]


def scalar() -> Any:
    return np.array(7.5)


def memory_map(path: Path, mode: Any) -> Any:
    return np.memmap(path, "f8", mode, shape=(60, 40))


@pytest.mark.needs("paging")
@pytest.mark.parametrize(
    ("library", "opener"),
    [
        pytest.param("dask", dask_array, marks=pytest.mark.slow),
        pytest.param("xarray", xarray_variable, marks=pytest.mark.slow),
        ("numpy", scalar),
    ],
)
def test_what_can_be_sliced_can_be_paged(library, opener):
    pytest.importorskip(library)
    expected = np.asarray(opener())
    with SlicedStore(opener) as store:
        array = pagemove.open_array(store, resident_limit="16KiB", block_size=4096)
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert array.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="cannot be written"):
        SlicedStore(opener, writable=True)


def slow_to_open() -> Any:
    time.sleep(1.5)  # as the import of a library is
    return np.arange(6.0)


@pytest.mark.needs("paging")
def test_a_library_that_is_slow_to_import_is_not_late_with_the_first_block():
    with SlicedStore(slow_to_open) as store:
        array = pagemove.open_array(store, store_timeout=0.5)
        assert array.tolist() == [0, 1, 2, 3, 4, 5]


def test_by_name_and_writable_if_it_reaches_a_file(tmp_path):
    with SlicedStore(f"{__name__}:scalar") as store:
        assert (store.shape, store.nbytes) == ((), 8)
    path = tmp_path / "map"
    values_of((60, 40)).tofile(path)
    opener = functools.partial(memory_map, path, "r+")
    with SlicedStore(opener, writable=True, path=path) as store:
        store.write(8 * 41, np.array([1.5, 2.5]))
        store.flush()
    assert np.fromfile(path).reshape(60, 40)[1, 1:3].tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match="cannot be written"):
        SlicedStore(functools.partial(memory_map, path, "r"), writable=True)


@pytest.mark.parametrize(
    ("opener", "error", "message"),
    [
        (3, TypeError, "open must be a function"),
        (dict, TypeError, "cannot be sliced"),
        (lambda: np.zeros(3, object), TypeError, "Python objects"),
        (lambda: np.zeros((3, 0)), ValueError, "no items"),
        ("no.such.module:f", ModuleNotFoundError, "no"),
    ],
)
def test_what_cannot_be_paged_is_refused(opener, error, message):
    with pytest.raises(error, match=message):
        SlicedStore(opener)


def test_what_is_not_the_array_any_more_is_an_error(tmp_path):
    shapes = iter([(10, 4), (9, 4)])
    with SlicedStore(lambda: np.zeros(next(shapes))) as store, pytest.raises(StoreError) as caught:
        store.read_into(0, bytearray(8))
    assert "not what it was" in str(caught.value)

    class Short:
        shape, dtype = (10, 4), np.dtype("f8")

        def __getitem__(self, key: Any) -> Any:
            return np.zeros((10, 4))[key][:-1]

    with SlicedStore(Short) as store, pytest.raises(StoreError, match="have shape"):
        store.read_into(0, bytearray(8))


def test_files_by_their_names(tmp_path):
    name = write(tmp_path, "hdf5", values_of(SHAPE), CHUNKS)
    assert chunked_store(tmp_path / "x.npy") is None
    with pytest.raises(TypeError, match="name one of its data sets, group/data"):
        chunked_store(name.partition("#")[0])
    with pytest.raises(FileNotFoundError):
        chunked_store(tmp_path / "none.h5", "a")
    with chunked_store(tmp_path / "x.h5", "group/data") as store:
        assert store.shape == SHAPE


_OPEN_FOR_WRITING = """
import sys
import h5py
import pagemove
file = h5py.File(sys.argv[1], "r+")
for mode in ("r", "r+"):
    try:
        pagemove.open_array(sys.argv[1], name="group/data", mode=mode)
    except BlockingIOError as error:
        for word in (sys.argv[1], "close it there", "HDF5_USE_FILE_LOCKING=FALSE"):
            assert word in str(error), (word, str(error))
    else:
        raise AssertionError(f"{mode}: it was opened")
file.close()
print(pagemove.open_array(sys.argv[1], name="group/data").shape)
"""


@pytest.mark.needs("paging")
def test_an_hdf5_file_that_is_open_for_writing_is_refused_at_once(tmp_path):
    write(tmp_path, "hdf5", values_of(SHAPE), CHUNKS)
    environment = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    command = [sys.executable, "-c", _OPEN_FOR_WRITING, str(tmp_path / "x.h5")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(SHAPE)


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    pytest.importorskip("zarr")
    with pytest.raises(FileNotFoundError):
        chunked_store(tmp_path / "none.zarr", "a", writable=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.needs("paging")
def test_all_arrays_of_a_zarr_group(tmp_path):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "x.zarr"
    group = zarr.open_group(str(path), mode="w")
    for name in ("a", "inner/cube", "inner/deep/odd"):
        values = ARRAYS[name.rpartition("/")[2]]
        group.create_array(name, shape=values.shape, dtype=values.dtype)[...] = values
    with pagemove.open_arrays(path, resident_limit="1MiB", store_timeout=60) as arrays:
        assert list(arrays) == ["a", "inner/cube", "inner/deep/odd"]
        assert arrays.regions == ()
        for name in arrays:
            same(arrays[name], ARRAYS[name.rpartition("/")[2]])
        assert len({region.budget for region in arrays.regions}) == 1
        with pytest.raises(KeyError, match=r"no array 'inner/cub'.*'inner/cube'"):
            arrays["inner/cub"]
    with pytest.raises(TypeError, match="is a group: name one of its arrays, a, inner/cube"):
        pagemove.open_array(path)
    with pytest.raises(ValueError, match="one array, and no group"):
        pagemove.open_arrays(_lone(zarr, tmp_path))
    with pytest.raises(FileNotFoundError):
        pagemove.open_arrays(tmp_path / "none.zarr")
    with Source(f"{path}#inner/cube").open() as part:
        assert part.nbytes == ARRAYS["cube"].nbytes


def _lone(zarr: Any, folder: Path) -> Path:
    zarr.create_array(str(folder / "one.zarr"), shape=(3,), dtype="i4")
    return folder / "one.zarr"

"""Every public call of paged memory, to be made many times, successfully and not."""

from __future__ import annotations

import contextlib
import io
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import pagemove
from pagemove.stores import FileStore
from pagemove.stores.handed import HandedStore
from pagemove.testing import Fault, FaultyStore

from .leak_calls import calls, fails

_BLOCK = 65536


@calls("StoreError")
def _store_error() -> Iterator[Callable[[], object]]:
    def function() -> None:
        error = pagemove.StoreError(5, "text", store="file", operation="read", offset=1)
        assert pickle.loads(pickle.dumps(error)).offset == 1

    yield function


@contextlib.contextmanager
def _file(contents: bytes = b"x" * (20 * _BLOCK + 5)) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(contents)
        yield path


def _use(region: pagemove.PagedMemory) -> None:
    array = region.asarray(np.uint8)
    array[::_BLOCK].sum()
    if array.flags.writeable:
        array[:: 2 * _BLOCK] = 7
    region.prefetch(0, 2 * _BLOCK, wait=True)
    region.evict(0, _BLOCK)
    region.flush()
    region.stats()
    repr(region)
    fails(region.close)
    fails(region.prefetch, -1)
    fails(region.asarray, "O")


@calls("Budget", "BudgetShare", "BudgetStats")
def _budget() -> Iterator[Callable[[], object]]:
    def function() -> None:
        budget = pagemove.Budget(12 * _BLOCK)
        how = {"resident_limit": budget}
        with (
            FileStore(path) as store,
            pagemove.PagedMemory(store, **how) as one,
            pagemove.PagedMemory(store, **how) as other,
        ):
            for region in (one, other):
                region.prefetch(wait=True)
            budget.resize(8 * _BLOCK)
            fails(budget.resize, 4 * _BLOCK)
            repr(budget)
            assert len(budget.stats().regions) == 2
            fails(pagemove.PagedMemory, store, resident_limit=pagemove.Budget(1 << 14))
        fails(pagemove.Budget, 1)

    with _file() as path:
        yield function


@calls("PagedMemory", "PagingStats")
def _paged_memory() -> Iterator[Callable[[], object]]:
    faults = [Fault("read", first=30, count=0, errno=5), Fault("write", first=1, errno=28)]

    def function() -> None:
        for mode in ("r", "r+", "c"):
            with (
                FileStore(path, writable=True) as store,
                pagemove.PagedMemory(store, mode=mode, resident_limit=4 * _BLOCK) as region,
            ):
                _use(region)
        with FaultyStore(path, writable=True, faults=faults) as store:
            region = pagemove.PagedMemory(store, mode="r+", prefetch="off", store_timeout=0)
            region.asarray(np.uint8)[0] = 1
            region.flush()
            region.asarray(np.uint8)[0] = 2
            fails(region.flush)
            fails(pagemove.PagedMemory, store, block_size=5)
            fails(pagemove.PagedMemory, path)
            region.close()

    with _file() as path:
        yield function


@calls("pinned", "save")
def _pinned_and_saved() -> Iterator[Callable[[], object]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        np.save(path, np.arange(1 << 15))
        array = pagemove.open_array(path, resident_limit=8 * _BLOCK)

        def pin_and_save() -> None:
            with pagemove.pinned(array[:100]):
                pagemove.save(Path(folder, "copy.npy"), array)

        yield pin_and_save


@calls("serve")
def _serve() -> Iterator[Callable[[], object]]:
    def function() -> None:
        array = pagemove.open_array(file, dtype="u1", mode="c", block_size=_BLOCK)
        array[0] = 7
        with pagemove.serve(array, folder / "socket") as served:
            fails(pagemove.serve, array, folder / "other")
            with HandedStore(served.url) as store:
                found = bytearray(2 * _BLOCK)
                store.read_into(0, found)
                assert found[:2] == b"\7x"
            assert served.taken

    with _file() as file:
        folder = file.parent
        # Tables of threads and sockets fill up for longer than is watched.
        for _ in range(200):
            function()
        yield function


@calls("Reference", "create_array", "open_arrays", "prefetch", "reference", "take")
def _arrays() -> Iterator[Callable[[], object]]:
    def function() -> None:
        array = pagemove.create_array(folder / "new.npy", (64, 1024), "f8", block_size=_BLOCK)
        array[3] = 1
        rows = pagemove.take(array, [3, 60, 3])
        assert rows.sum() == 2048
        pagemove.prefetch(array, [1, 2], wait=True)
        fails(pagemove.take, array, [64])
        found = pagemove.reference(array).open()
        assert found[3, 5] == 1
        del array, found
        with pagemove.open_arrays(folder / "x.npz", block_size=_BLOCK) as arrays:
            assert arrays["a"][7] == 7
        fails(pagemove.open_arrays, folder / "new.npy")
        fails(pagemove.create_array, folder, (1,), "f8")

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        np.savez(folder / "x.npz", a=np.arange(10_000))
        yield function


@calls("memmap", "open_array", "region_of")
def _open_array() -> Iterator[Callable[[], object]]:
    def function() -> None:
        for mode in ("r", "r+", "c"):
            array = pagemove.open_array(path, mode=mode, resident_limit=8 * _BLOCK)
            raw = pagemove.memmap(path, mode="r", resident_limit=4 * _BLOCK)
            assert raw.flush() is None
            assert array[::1000].sum() >= 0
            if mode != "r":
                array[1:][::500] += 1
                pagemove.region_of(array[5:]).flush()
            view = array[5:]
            with raw, pagemove.pinned(array[:10]):
                fails(array.close)
            array.close()
            assert view.closed
        fails(pagemove.open_array, path, dtype="u1")
        fails(pagemove.open_array, path, dtype="u1", offset=1 << 40)
        fails(pagemove.open_array, path.parent)
        fails(pagemove.open_array, "no-such-protocol://bucket/key")
        fails(pagemove.region_of, np.zeros(3))

    contents = io.BytesIO()
    np.save(contents, np.arange(100_000))
    with _file(contents.getvalue()) as path:
        yield function


@calls("paged_allocations", "PagedAllocations", "AllocationStats")
def _paged_allocations() -> Iterator[Callable[[], object]]:
    with tempfile.TemporaryDirectory() as folder:

        def function() -> None:
            with pagemove.paged_allocations("4MiB", spill=folder) as arena:
                numbers = np.arange(1 << 18)
                assert arena.stats().arrays == 1
                assert numbers[-1] == (1 << 18) - 1
            del numbers
            fails(pagemove.paged_allocations, "nothing")
            fails(pagemove.paged_allocations, "4MiB", spill="/nowhere")

        yield function

"""`paged_allocations`: NumPy's large arrays under one limit, whoever makes them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove._native import arena as native
from pagemove._native import pager
from pagemove.paging.arenas import new_arena
from pagemove.paging.registry import region_at
from support.descriptors import files_in
from support.paging import noise

pytestmark = pytest.mark.needs("paging")

_MIB = 1 << 20


@pytest.fixture
def paged(tmp_path):
    """What `paged_allocations` returns, over a file: no helper has to start."""

    def make(limit="8MiB", **options):
        return pagemove.paged_allocations(limit, **{"spill": tmp_path} | options)

    return make


def region_of(array):
    return region_at(array.ctypes.data, max(array.nbytes, 1))


def test_large_arrays_are_in_it_and_small_ones_are_not(paged):
    with paged() as arena:
        large, small = np.empty(_MIB, np.uint8), np.empty(_MIB - 1, np.uint8)
        assert region_of(large) is not None
        assert region_of(small) is None
        assert arena.stats().arrays == 1
    after = np.empty(4 * _MIB, np.uint8)
    assert region_of(after) is None


def test_more_than_the_limit_is_there_and_the_limit_holds(paged):
    with paged("4MiB") as arena:
        numbers = np.arange(_MIB)
        doubled = numbers * 2
        most = arena.stats().paging.resident_nbytes
    assert (doubled == np.arange(_MIB) * 2).all()
    assert most <= 4 * _MIB
    assert arena.stats().paging.resident_nbytes <= 4 * _MIB
    assert arena.stats().paging.written_back


@pytest.mark.parametrize("spill", [True, False])
def test_nothing_of_what_was_freed_is_kept(tmp_path, spill):
    allocations = pagemove.paged_allocations("4MiB", spill=tmp_path if spill else None)
    with allocations as arena:
        numbers = np.arange(2 * _MIB)
        made = arena.stats()
        del numbers
        freed = arena.stats()
        zeros = np.zeros(2 * _MIB, np.int64)
    assert made.paging.resident_nbytes
    assert made.paging.written_back
    assert (freed.arrays, freed.nbytes, freed.paging.resident_nbytes) == (0, 0, 0)
    assert freed.largest_free_nbytes == freed.space_nbytes
    assert freed.paging.dirty_nbytes == 0
    if not spill:
        assert made.paging.store["stored_nbytes"] > 0
        assert freed.paging.store["stored_nbytes"] == 0
    assert not zeros.any()


def test_what_was_spilled_leaves_the_file(tmp_path):
    def used():
        return max(each.stat().st_blocks * 512 for each in files_in(tmp_path).values())

    with pagemove.paged_allocations("4MiB", spill=tmp_path):
        numbers = noise(16 * _MIB)
        before = used()
        del numbers
        assert before > 8 * _MIB
        assert used() < _MIB


def test_zeros_take_no_memory_until_they_are_touched(paged):
    with paged() as arena:
        zeros = np.zeros(1 << 33, np.uint8)
        assert arena.stats().paging.faults == 0
        zeros[1 << 32] = 7
        assert int(zeros[(1 << 32) - 5 : (1 << 32) + 5].sum()) == 7
        assert arena.stats().paging.bytes_read == 0


def test_it_is_aligned(paged):
    with paged():
        arrays = [np.empty(_MIB + 100 * i, np.uint8) for i in range(20)]
    assert {array.ctypes.data % 4096 for array in arrays} == {0}


def test_an_array_grows_where_it_is(paged):
    with paged() as arena:
        array = np.arange(_MIB, dtype=np.uint8)
        first = array.ctypes.data
        array.resize(2 * _MIB, refcheck=False)
        assert array.ctypes.data == first
        assert arena.stats().moved_nbytes == 0
        assert (array[:_MIB] == np.arange(_MIB, dtype=np.uint8)).all()
        assert not array[_MIB:].any()
        array.resize(100, refcheck=False)
        array.resize(40 * _MIB, refcheck=False)
        assert (array[:100] == np.arange(100)).all()
        assert not array[100:].any()


def test_a_small_array_grows_into_it(paged):
    with paged():
        array = np.arange(1000)
        array.resize(_MIB, refcheck=False)
        assert region_of(array) is not None
        assert (array[:1000] == np.arange(1000)).all()
        assert not array[1000:].any()


def test_arrays_outlive_the_block_and_the_arena_ends_with_the_last(paged):
    def inside():
        with paged() as arena:
            return np.arange(_MIB), weakref.ref(arena), weakref.ref(region_of(np.arange(_MIB)))

    array, arena, region = inside()
    gc.collect()
    assert arena() is None
    assert region() is not None
    assert int(array.sum()) == _MIB * (_MIB - 1) // 2
    view = array[5:10]
    del array
    assert view.tolist() == [5, 6, 7, 8, 9]
    del view
    gc.collect()
    assert region() is None


def test_one_object_has_one_arena_however_often_it_is_entered(paged):
    arena = paged()
    with arena:
        one = np.empty(_MIB)
        with arena:
            two, small = np.empty(_MIB), np.empty(10)
        three = np.empty(_MIB)
    assert region_of(one) is region_of(two) is region_of(three)
    assert region_of(small) is None
    assert region_of(np.empty(_MIB)) is None


def test_within_another(paged):
    with paged(min_size=4096):
        outer = np.empty(_MIB)
        with paged():
            inner, small = np.empty(_MIB), np.empty(4096, np.uint8)
        again = np.empty(_MIB)
    assert region_of(inner) is not region_of(outer)
    assert region_of(small) is region_of(again) is region_of(outer)


def test_an_exception_leaves_it(paged):
    with pytest.raises(KeyError), paged():
        raise KeyError
    assert region_of(np.empty(_MIB)) is None


def test_other_threads_have_what_they_had(paged):
    found = []
    with paged():
        thread = threading.Thread(target=lambda: found.append(region_of(np.empty(_MIB))))
        thread.start()
        thread.join()
    assert found == [None]


def test_tasks_of_asyncio_are_apart(paged):
    async def make(arena, both):
        with arena:
            await both.wait()
            return region_of(np.empty(_MIB))

    async def outside(both):
        await both.wait()
        return region_of(np.empty(_MIB))

    async def main():
        both = asyncio.Barrier(3)
        return await asyncio.gather(make(paged(), both), make(paged(), both), outside(both))

    one, two, none = asyncio.run(main())
    assert one is not None
    assert two is not None
    assert one is not two
    assert none is None


def test_a_decorator(paged):
    arena = paged()

    @arena
    def function(count):
        """Documented."""
        return np.empty(count)

    @arena
    async def coroutine():
        await asyncio.sleep(0)
        return np.empty(_MIB)

    @arena
    def generator():
        got = yield np.empty(_MIB)
        return got

    assert function.__doc__ == "Documented."
    assert region_of(function(_MIB)) is region_of(asyncio.run(coroutine())) is not None
    running = generator()
    assert region_of(next(running)) is not None
    with pytest.raises(StopIteration, match="5"):
        running.send(5)
    assert region_of(np.empty(_MIB)) is None


def test_a_decorated_asynchronous_generator_is_one(paged):
    arena, ended = paged(), []

    @arena
    async def generator(count):
        try:
            while True:
                try:
                    count = (yield np.empty(count)) or count
                except ValueError as error:
                    yield error
                    return
        finally:
            await asyncio.sleep(0)
            ended.append(region_of(np.empty(_MIB)) is not None)

    async def drive():
        running = generator(_MIB)
        first = await anext(running)
        second = await running.asend(2 * _MIB)
        assert (region_of(first) is region_of(second) is not None, second.size) == (True, 2 * _MIB)
        thrown = await running.athrow(ValueError("spam"))
        assert str(thrown) == "spam"
        with pytest.raises(StopAsyncIteration):
            await anext(running)
        closed = generator(_MIB)
        await anext(closed)
        await closed.aclose()
        assert region_of(np.empty(_MIB)) is None

    assert inspect.isasyncgenfunction(generator)
    asyncio.run(drive())
    assert ended == [True, True]


def test_generators_that_end_out_of_order(paged):
    def within(arena):
        with arena:
            yield

    one, two = within(paged()), within(paged())
    next(one)
    next(two)
    one.close()
    two.close()
    assert region_of(np.empty(_MIB)) is None


def test_no_address_space_is_a_memory_error_that_says_so(paged):
    with pytest.raises(MemoryError) as caught, paged() as arena:
        np.empty(1 << 50, np.uint8)
    assert arena.stats().refused == 1
    assert "address space for 1 TiB of arrays, 0 B were in use" in caught.value.__notes__[0]


def test_a_limit_of_a_few_megabytes_takes_arrays_larger_than_the_machine(paged):
    with paged():
        arrays = [np.zeros(100 << 30, np.uint8) for _ in range(4)]
    for array in arrays:
        array[:: 1 << 30] = 1
    assert [int(array[:: 1 << 30].sum()) for array in arrays] == [100] * 4


_FULL = """if True:
    import numpy as np, pagemove
    random, arrays = np.random.default_rng(0), []
    arena = pagemove.paged_allocations("16MiB", store_limit="16MiB")
    for _ in range(3):
        try:
            with arena:
                while True:
                    arrays.append(random.random(1 << 17))
                    assert len(arrays) < 64
        except MemoryError as error:
            (note,) = error.__notes__
            assert "store_limit is full" in note and "--store-limit" in note, note
        assert arena.stats().arrays == len(arrays) >= 20, len(arrays)
        del arrays[12:]  # there is room again
        random = np.random.default_rng(0)
        assert all((array == random.random(1 << 17)).all() for array in arrays)
    """


@pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1")
def test_an_array_that_has_no_room_is_a_memory_error_that_says_so():
    command = [sys.executable, "-W", "ignore", "-c", _FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"limit": "1KiB"}, ValueError, "four pages"),
        ({"limit": "0%"}, ValueError, "not a share of memory"),
        ({"limit": "lots"}, ValueError, "not a number of bytes"),
        ({"limit": "8MiB", "min_size": 0}, ValueError, "must be positive"),
        ({"limit": "8MiB", "spill": "/dev/null"}, NotADirectoryError, "spill must be a directory"),
        ({"limit": True}, TypeError, "limit must be a number of bytes .* not True"),
        ({"limit": "8MiB", "min_size": False}, TypeError, "min_size must be .* not False"),
        ({"limit": "8MiB", "spill": ""}, ValueError, "names no directory: .* leave spill out"),
        ({"limit": "8MiB", "spill": 3}, TypeError, "spill must be a path .* not 3"),
    ],
)
def test_wrong_arguments(options, kind, message):
    with pytest.raises(kind, match=message), pagemove.paged_allocations(**options):
        pass


def test_a_share_of_what_is_available():
    half, tenth = (pagemove.paged_allocations(each)._limit for each in ("auto", "10%"))
    assert 3 * tenth < half < 7 * tenth


def test_a_budget_is_shared(paged):
    budget = pagemove.Budget("8MiB")
    with paged(budget), paged(budget):
        numbers = np.arange(2 * _MIB)
        assert budget.stats().members == 2
        assert budget.stats().resident_nbytes <= 8 * _MIB
        assert int(numbers[-1]) == 2 * _MIB - 1


def test_arrays_that_fit_the_limit_take_no_faults_of_the_pager(paged):
    with paged() as arena:
        numbers = np.arange(_MIB // 2)
        halves = numbers / 2
        fitting = arena.stats().paging
        more = np.arange(_MIB)
        beyond = arena.stats().paging
    assert (fitting.faults, fitting.dirty_nbytes) == (0, 0)
    assert fitting.resident_nbytes == 8 * _MIB
    assert beyond.faults > 0
    assert beyond.resident_nbytes <= 8 * _MIB
    assert (halves * 2 == numbers).all()
    assert (more == np.arange(_MIB)).all()


def test_what_was_freed_is_used_again_and_zeros_are_zeros(paged):
    with paged():
        arena, memory = new_arena(8 * _MIB, _MIB, None)
        first = arena.allocate(2 * _MIB)
        ctypes.memset(first, 7, 2 * _MIB)
        arena.release(first)
        assert arena.counters()["kept"] == 2 * _MIB
        assert arena.allocate(2 * _MIB, True) == first
        assert not any(ctypes.string_at(first, 2 * _MIB))
        ctypes.memset(first, 7, 2 * _MIB)
        arena.release(first)
        # What is kept gives way to what is in use before anything is evicted.
        other = arena.allocate(11 * _MIB // 2)
        ctypes.memset(other, 1, 11 * _MIB // 2)
        assert arena.counters()["kept"] == 2 * _MIB
        third = arena.allocate(_MIB)
        assert arena.counters()["kept"] == 0
        assert memory.stats().faults == 0
        assert not any(ctypes.string_at(third, _MIB))


def test_system_calls_and_pins_find_the_region(paged, tmp_path):
    with paged("4MiB"):
        numbers = np.arange(_MIB)
        pagemove.save(tmp_path / "numbers.npy", numbers)
        with pagemove.pinned(numbers[:1000]) as some, open(tmp_path / "some", "wb") as file:
            file.write(some)
    assert (np.load(tmp_path / "numbers.npy") == numbers).all()
    assert (np.fromfile(tmp_path / "some", int) == np.arange(1000)).all()


def test_what_is_freed_while_it_is_pinned_is_never_used_again(paged):
    with paged():
        arena, memory = new_arena(8 * _MIB, _MIB, None)
        address = arena.allocate(_MIB)
        block = memory.block_size
        offset = address - memory.address
        memory.pin_blocks(np.array([[offset // block, 1]], np.uint32).tobytes(), True)
        arena.release(address)
        assert arena.counters()["lost"] >= _MIB
        assert arena.allocate(_MIB) not in (0, address)
        memory.unpin_blocks(np.array([[offset // block, 1]], np.uint32).tobytes())


def test_numpy_has_the_functions_where_they_are_looked_for():
    header = Path(np.get_include(), "numpy", "__multiarray_api.h").read_text()
    for name, place in (
        ("PyArray_GetNDArrayCFeatureVersion", 211),
        ("PyDataMem_SetHandler", 304),
        ("PyDataMem_GetHandler", 305),
        ("PyDataMem_DefaultHandler", 306),
    ):
        found = re.search(rf"define {name}\s[^#]*?PyArray_API\[(\d+)\]", header)
        assert found, name
        assert int(found[1]) == place
    layout = Path(np.get_include(), "numpy", "ndarraytypes.h").read_text()
    assert re.search(r"char name\[127\];.*?uint8_t version;.*?PyDataMemAllocator", layout, re.S)


def test_the_handler_is_numpys_again_afterwards(paged):
    before = native.current_handler()
    with paged():
        assert native.current_handler() is not before
    assert native.current_handler() is before

"""empty(shape, dtype=float, *, huge_pages=False): an array in memory of its own."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest

import pagemove
from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, PageState, move, page_states, remap_anon_pages
from support import vmas_in

from .checks import signature


def test_its_signature_is_the_one_of_the_contract():
    assert signature(pagemove.empty).startswith(
        "(shape, dtype=<class 'float'>, *, huge_pages=False)"
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (5, float),
        ((3, 1000), np.float32),
        ((2, 3, 4), "c16"),
        ([4, 5], np.int16),
        ((np.int64(2), np.uint8(3)), bool),
        ((), float),
        (0, float),
        ((0, 5), np.int8),
        ((5, 0), "u8"),
        (7, [("a", "i4"), ("b", "f8", 3)]),
        (3, "S5"),
        (3, "datetime64[ns]"),
        (np.int32(9), ">i4"),
    ],
    ids=repr,
)
def test_is_what_numpy_would_make(shape, dtype):
    array = pagemove.empty(shape, dtype)
    expected = np.zeros(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert array.flags.writeable
    assert array.flags.c_contiguous
    assert array.tobytes() == expected.tobytes()
    assert array.ctypes.data % PAGE_SIZE == 0


def test_is_of_float_by_default():
    assert pagemove.empty(3).dtype == np.float64


def test_is_not_committed_before_it_is_written():
    array = pagemove.empty(1 << 20, np.uint8)
    assert not page_states(array).any()


@pytest.mark.needs("thp", "pagemap_scan")
def test_huge_pages():
    array = pagemove.empty(2 * HUGE_PAGE_SIZE, np.uint8, huge_pages=True)
    array[:] = 1
    assert (page_states(array) & PageState.HUGE).all()
    assert array.ctypes.data % HUGE_PAGE_SIZE == 0


def test_every_array_has_pages_of_its_own():
    arrays = [pagemove.empty(10) for _ in range(20)]
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array[9] for array in arrays] == list(range(20))
    assert len({array.ctypes.data // PAGE_SIZE for array in arrays}) == 20


@pytest.mark.parametrize("shape", [-1, (3, -1), (-1, 0), (0, -1), -(2**70)])
def test_a_negative_dimension_is_a_value_error(shape):
    with pytest.raises(ValueError, match="negative"):
        pagemove.empty(shape)


@pytest.mark.parametrize("shape", [2**60, (2**32, 2**32), 2**64, (2**40, 2**40)])
def test_more_than_there_is_is_a_memory_error(shape):
    with pytest.raises((MemoryError, ValueError)):
        pagemove.empty(shape)


@pytest.mark.parametrize("shape", [1.5, "3", None, (1, 2.0), [None]], ids=repr)
def test_a_shape_that_is_no_integers_is_a_type_error(shape):
    with pytest.raises(TypeError):
        pagemove.empty(shape)


@pytest.mark.parametrize("dtype", [object, "O", [("a", object)], "nonsense"], ids=repr)
def test_dtypes_that_cannot_move_are_a_type_error(dtype):
    with pytest.raises(TypeError):
        pagemove.empty(3, dtype)


class TestLifetime:
    """Kept alive by the array, freed without a warning."""

    def freed(self, address: int) -> bool:
        gc.collect()
        return not vmas_in(address, PAGE_SIZE)

    def test_is_freed_with_the_array(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = pagemove.empty(1000)
            address = array.ctypes.data
            array[:] = 1
            del array
            assert self.freed(address)

    @pytest.mark.parametrize(
        "derive",
        [
            lambda a: a[3:5],
            lambda a: a.reshape(10, 100),
            lambda a: a.T,
            memoryview,
            lambda a: a.view(np.uint8),
            lambda a: np.frombuffer(a, np.int32),
        ],
    )
    def test_is_kept_by_every_view(self, derive):
        array = pagemove.empty(1000)
        array[:] = 1
        address = array.ctypes.data
        view = derive(array)
        expected = bytes(view)
        del array
        gc.collect()
        assert bytes(view) == expected
        del view
        assert self.freed(address)

    def test_no_copy_is_made_of_it(self):
        array = pagemove.empty(1000)
        assert np.shares_memory(array, array.reshape(-1))
        duplicate = array.copy()
        assert not np.shares_memory(array, duplicate)


@pytest.mark.needs("move")
class TestMoves:
    def test_between_two_of_equal_nbytes_takes_the_partial_last_page_along(self):
        dst, src = pagemove.empty((3, 1000)), pagemove.empty((3, 1000))
        src[:] = np.arange(3000).reshape(3, 1000)
        assert move(dst, src) == -(-src.nbytes // PAGE_SIZE) * PAGE_SIZE
        assert (dst == np.arange(3000).reshape(3, 1000)).all()
        assert not page_states(src).any()

    def test_by_address(self):
        dst, src = pagemove.empty(512), pagemove.empty(512)
        src[:] = 4
        assert remap_anon_pages(dst.ctypes.data, src.ctypes.data, PAGE_SIZE) == PAGE_SIZE
        assert (dst == 4).all()

    def test_an_array_of_nothing_has_nothing_to_move(self):
        with pytest.raises(OSError, match="whole pages") as caught:
            move(pagemove.empty(0), pagemove.empty(0))
        assert caught.value.errno == 22

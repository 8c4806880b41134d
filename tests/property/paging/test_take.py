"""`take` of arrays in paged memory and `numpy.take` of the same in ordinary memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import pagemove
from pagemove import PAGE_SIZE, PagedArray, PagedMemory
from pagemove.stores import FileStore
from property import EXAMPLES

pytestmark = pytest.mark.needs("paging")

_KINDS = [
    *(np.dtype(kind) for kind in ("u1", ">f8", "i4", "c16", "S7", "M8[ns]", "?")),
    np.dtype([("a", "u1"), ("b", "<f8")]),
]
_small = {"elements": st.integers(0, 12)}
_indices = st.one_of(
    arrays.arrays("i8", st.integers(0, 40), elements=st.integers(-60, 60)),
    arrays.arrays(
        st.sampled_from(["i8", "i2", "u8", "u1"]),
        arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=9),
        **_small,
    ),
    arrays.arrays(st.sampled_from(["?", "f8"]), st.integers(0, 5)),
    st.lists(st.integers(-12, 12), max_size=9),
    st.integers(-12, 12),
    st.sampled_from([2**63, -(2**63), [2**64 - 1], np.uint64(2**64 - 1), [1.5], "1", None]),
)


def _outcome(call: Any) -> tuple[Any, ...]:
    """What a call returns, byte for byte, or raises."""
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    found = np.asarray(result)
    return type(result), found.dtype, found.shape, found.flags.c_contiguous, found.tobytes()


@given(
    shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
    dtype=st.sampled_from(_KINDS),
    offset=st.sampled_from([0, 3, PAGE_SIZE]),
    blocks=st.sampled_from([4, 16, 1000]),
    mode=st.sampled_from(["r", "c"]),
    steps=st.lists(st.sampled_from([1, 2, -1, -3]), min_size=3, max_size=3),
    turned=st.booleans(),
    indices=_indices,
    axis=st.sampled_from([None, 0, 1, -1, 2]),
    how=st.sampled_from(["raise", "wrap", "clip"]),
    out=st.sampled_from(["", "C", "F", "wide", "long"]),
)
@settings(
    max_examples=EXAMPLES or 80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_as_numpy_take(
    tmp_path, shape, dtype, offset, blocks, mode, steps, turned, indices, axis, how, out
):
    nbytes = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(1).integers(0, 256, offset + nbytes + 1, np.uint8)
    data &= 1 if dtype.kind == "b" else 255
    data.tofile(tmp_path / "file")
    copied = data[offset : offset + nbytes].copy()
    plain = copied.view(dtype).reshape(shape) if nbytes else np.empty(shape, dtype)

    def seen(array: Any) -> Any:
        cut = tuple(slice(None, None, step) for step in steps[: array.ndim])
        return (array.T if turned else array)[cut]

    def into(array: Any) -> Any:
        made = np.zeros(
            (*shape_of, 1) if out == "long" else shape_of,
            dtype if out != "wide" else "c16",
            "F" if out == "F" else "C",
        )
        take = np.take if array is same else pagemove.take
        assert take(array, indices, axis, out=made) is made
        return made

    same = seen(plain)
    with (
        FileStore(tmp_path / "file") as store,
        PagedMemory(
            store, block_size=PAGE_SIZE, resident_limit=blocks * PAGE_SIZE, mode=mode
        ) as memory,
    ):
        array = seen(memory.asarray(dtype, shape, offset))
        wanted = _outcome(lambda: np.take(same, indices, axis))
        assert _outcome(partial(pagemove.take, array, indices, axis)) == wanted
        view = array.view(PagedArray)
        assert _outcome(partial(view.take, indices, axis, mode=how)) == _outcome(
            partial(same.take, indices, axis, mode=how)
        )
        if out and len(wanted) > 2:
            shape_of = wanted[2]
            assert _outcome(partial(into, array)) == _outcome(partial(into, same))
        del array, view

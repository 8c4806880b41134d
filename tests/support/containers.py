"""Arrays for files that hold several."""

from __future__ import annotations

import numpy as np

from pagemove import PagedArray

ARRAYS = {
    "a": np.arange(30_000.0).reshape(100, 300),
    "odd": np.arange(77, dtype="u1"),
    "wide name": np.arange(5000, dtype="<i4") - 9,
    "cube": np.arange(24, dtype="<f4").reshape(2, 3, 4),
    "none": np.zeros((0, 7), "<f8"),
    "one": np.array(3.5),
    "flags": np.arange(9) % 2 == 0,
}


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert isinstance(found, PagedArray)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()

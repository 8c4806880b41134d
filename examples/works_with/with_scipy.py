"""A sparse matrix of SciPy over three paged arrays, as the X of an h5ad file is stored."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse
from shown import LIMIT, NBYTES, Shown

import pagemove


def made(path: Path) -> Any:
    """Write a matrix as AnnData does, and return it."""
    columns, per_row = 2000, 64
    rows = NBYTES // 8 // per_row
    random = np.random.default_rng(1)
    indices = random.integers(0, columns, (rows, per_row), dtype=np.int32)
    indices.sort(axis=1)
    data = random.random(rows * per_row, dtype=np.float32)
    indptr = np.arange(0, rows * per_row + 1, per_row, dtype=np.int32)
    with h5py.File(path, "w") as file:
        x = file.create_group("X")
        x.attrs["encoding-type"], x.attrs["shape"] = "csr_matrix", (rows, columns)
        for name, part in (("data", data), ("indices", indices.ravel()), ("indptr", indptr)):
            x[name] = part
    return sparse.csr_array((data, indices.ravel(), indptr), (rows, columns))


def times_vector(matrix: Any) -> Any:
    """Multiply."""
    return matrix @ np.ones(matrix.shape[1], np.float32)


def rows(matrix: Any) -> Any:
    """Take rows, which are copied."""
    return matrix[100:200].toarray()


def converted(matrix: Any) -> Any:
    """Convert, which copies all."""
    return matrix.tocsc()[:, 5].sum()


def main() -> None:
    """Show it."""
    with tempfile.TemporaryDirectory() as folder:
        expected = made(Path(folder) / "cells.h5ad")
        arrays = pagemove.open_arrays(Path(folder) / "cells.h5ad", resident_limit=LIMIT)
        parts = [arrays[f"X/{name}"] for name in ("data", "indices", "indptr")]
        matrix = sparse.csr_array(tuple(parts), expected.shape, copy=False)
        shown = Shown("scipy", parts[0].region)
        shown.view("data", matrix.data, parts[0])
        shown.view("indices", matrix.indices, parts[1])
        small = expected[:4096]
        shown.call("X @ vector", times_vector, matrix, expected, small=small)
        shown.call("rows", rows, matrix, expected, small=small)
        shown.call("tocsc", converted, matrix, expected, copies=True, small=small)
        shown.end()


if __name__ == "__main__":
    main()

"""Compiled loops of Numba over a paged array, also by several threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from shown import Shown, numbers, paged


@njit
def largest(rows: Any) -> Any:
    """Return the largest item of each column."""
    found = np.full(rows.shape[1], -np.inf, rows.dtype)
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            found[column] = max(found[column], rows[row, column])
    return found


@njit(parallel=True)
def norms(rows: Any) -> Any:
    """Return a number for each row, by as many threads as there are CPUs."""
    found = np.empty(rows.shape[0])
    for row in prange(rows.shape[0]):
        total = 0.0
        for column in range(rows.shape[1]):
            total += rows[row, column] * rows[row, column]
        found[row] = total
    return found


def main() -> None:
    """Show it."""
    values = numbers(64)
    with paged(values) as array:
        # It knows arrays of NumPy, and compiles anew for those that are read-only.
        plain = np.asarray(array)
        small = plain[:64]
        shown = Shown("numba", array.region)
        shown.call("njit", largest, plain, values, small=small)
        shown.call("njit(parallel=True)", norms, plain, values, small=small)
        shown.end()


if __name__ == "__main__":
    main()

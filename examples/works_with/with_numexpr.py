"""Expressions of NumExpr over paged arrays, and into one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numexpr
import numpy as np
from shown import LIMIT, Shown, numbers, paged

import pagemove


def total(rows: Any) -> Any:
    """Reduce, a cache of items at a time."""
    return numexpr.evaluate("sum(2 * rows + 1, axis=1)")


def computed(rows: Any) -> Any:
    """Return as many items as there are: an array of that size is made."""
    return numexpr.evaluate("2 * rows + 1")


def main() -> None:
    """Show it."""
    values = numbers(64)
    with paged(values) as array, tempfile.TemporaryDirectory() as folder:
        shown = Shown("numexpr", array.region)
        shown.call("sum of an expression", total, array, values)
        shown.call("an expression", computed, array, values, copies=True)
        target = pagemove.create_array(
            Path(folder) / "out.npy", array.shape, array.dtype, resident_limit=LIMIT
        )

        def into(rows: Any) -> Any:
            """Compute into a paged array."""
            out = target[: len(rows)]
            numexpr.evaluate("2 * rows + 1", out=np.asarray(out))
            return out[::1000]

        # Both arrays have a limit.
        shown.call("an expression into a paged array", into, array, values)
        shown.end()


if __name__ == "__main__":
    main()

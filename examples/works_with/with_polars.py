"""Polars over a paged column of an Arrow file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from shown import LIMIT, Shown, numbers

import pagemove


def series(column: Any) -> Any:
    """Make a series over the memory of an array, by Arrow's interface."""
    buffers = [None, pa.py_buffer(np.asarray(column))]
    return pl.Series(pa.Array.from_buffers(pa.float32(), len(column), buffers))


def total(column: Any) -> Any:
    """Sum a column."""
    return series(column).sum()


def large(column: Any) -> Any:
    """Choose items of it, without an array of what is chosen in between."""
    frame = pl.DataFrame({"x": series(column)}).lazy()
    return frame.filter(pl.col("x") > 4).select(pl.len()).collect(engine="streaming")


def sorted_items(column: Any) -> Any:
    """Sort, which copies all."""
    return series(column).sort()[:5]


def main() -> None:
    """Show it."""
    values = numbers(1)[:, 0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.arrow"
        table = pa.table({"x": values})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        array = pagemove.open_arrays(path, resident_limit=LIMIT)["x"]
        plain = np.asarray(array)
        shown = Shown("polars", array.region)
        shown.view("Series of Arrow's buffer", series(array).to_numpy(allow_copy=False), array)
        shown.call("sum", total, array, values)
        shown.call("filter, streaming", large, array, values)
        shown.view("Series of an array", pl.Series(plain).to_numpy(allow_copy=False), array)
        shown.call("sort", sorted_items, array, values, copies=True)
        shown.end()


if __name__ == "__main__":
    main()

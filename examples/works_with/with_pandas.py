"""pandas over a paged array: a frame of one dtype that copies nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from shown import Shown, numbers, paged


def frame(rows: Any) -> Any:
    """Make a frame over the memory of an array."""
    return pd.DataFrame(np.asarray(rows), copy=False)


def means(rows: Any) -> Any:
    """Reduce the whole frame at once."""
    return frame(rows).mean()


def copied(rows: Any) -> Any:
    """Make a frame as pandas does by default."""
    return pd.DataFrame(np.asarray(rows)).iloc[-1]


def some(rows: Any) -> Any:
    """Choose rows by a column."""
    data = frame(rows)
    return data[data[3] > 2.5]


def main() -> None:
    """Show it."""
    values = numbers(64)
    with paged(values, mode="c") as array:
        shown = Shown("pandas", array.region)
        shown.view("DataFrame", frame(array).to_numpy(), array)
        shown.call("chosen rows", some, array, values)
        shown.call("mean", means, array, values)
        shown.call("DataFrame without copy=False", copied, array, values, copies=True)
        shown.end()


if __name__ == "__main__":
    main()

"""A new array larger than its limit, written in order, against open_memmap with flush."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pagemove
from benchmarks._measure import Effort, Finding, free
from benchmarks._paging import Way, in_turn, speed
from benchmarks._report import run_alone
from pagemove.paging.sizes import nbytes_of

_PIECE = 1 << 20  # items
_LIMIT = "100MiB"
_TARGET = 0.8


def _written(make: Callable[[Path], Any], path: Path, items: int) -> float:
    values = np.arange(_PIECE, dtype="f8")
    os.sync()
    began = time.perf_counter_ns()
    array = make(path)
    for first in range(0, items, _PIECE):
        array[first : first + _PIECE] = values[: items - first]
    array.flush()
    took = time.perf_counter_ns() - began
    if isinstance(array, pagemove.PagedArray):
        assert array.region.stats().resident_nbytes <= nbytes_of(_LIMIT, "limit")
    assert array[items - 1] == (items - 1) % _PIECE
    del array
    path.unlink()
    return took / items


def measure(effort: Effort) -> list[Finding]:
    items = 2 * effort.file // 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new.npy")
        makers: dict[str, Callable[[Path], Any]] = {
            f"create_array at {_LIMIT}": lambda path: pagemove.create_array(
                path, items, "f8", resident_limit=_LIMIT
            ),
            "open_memmap": lambda path: np.lib.format.open_memmap(
                path, "w+", dtype="f8", shape=(items,)
            ),
        }
        ways = [
            Way(name, lambda make=make: _written(make, path, items))
            for name, make in makers.items()
        ]
        with free():
            samples = in_turn(ways, effort.passes)
    ours, theirs = makers
    return [speed(samples, ours, theirs, _TARGET, f"{items * 8 >> 20} MiB, flushed")]


if __name__ == "__main__":
    run_alone(measure)

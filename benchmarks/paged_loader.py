"""Random batches of rows from a cold file, in two forked workers, as a data loader reads them."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pagemove
from benchmarks._measure import Effort, Finding, free
from benchmarks._paging import Way, chill, in_turn, speed
from benchmarks._report import run_alone
from pagemove import PAGE_SIZE

_BATCH = 64
_WORKERS = 2
_WORDS = PAGE_SIZE // 8
_TARGET = 1.0
_TARGET_TAKE = 2.0

Table = npt.NDArray[np.uint64]
Batches = npt.NDArray[np.int64]
Load = Callable[[Table, npt.NDArray[np.int64]], Table]


def _item_by_item(table: Table, batch: npt.NDArray[np.int64]) -> Table:
    """As a data set's ``__getitem__`` and a data loader's collate do."""
    return np.stack([table[row] for row in batch])


def _work(
    table: Table, load: Load, batches: Batches, results: SimpleQueue[list[tuple[int, bool]]]
) -> None:
    results.put(
        [
            (len(found), bool((found[:, 0] == batch.astype(np.uint64)).all()))
            for batch in batches
            for found in (load(table, batch),)
        ]
    )


class _Loader:
    """The file, and the rows that are asked for: each time other ones."""

    def __init__(self, path: Path, rows: int, batches: int) -> None:
        self._path, self._rows, self._batches = path, rows, batches
        self._random = np.random.default_rng(1)
        self._context: Any = multiprocessing.get_context("fork")

    def run(self, table: Table, load: Load) -> float:
        """Return the nanoseconds of a row, by workers that are forked for it."""
        fd = os.open(self._path, os.O_RDONLY)
        chill(fd)
        os.close(fd)
        parts = self._random.integers(
            self._rows, size=(_WORKERS, self._batches // _WORKERS, _BATCH)
        )
        results = self._context.SimpleQueue()
        began = time.perf_counter_ns()
        workers = [
            self._context.Process(target=_work, args=(table, load, part, results)) for part in parts
        ]
        for worker in workers:
            worker.start()
        found = [each for _ in workers for each in results.get()]
        took = time.perf_counter_ns() - began
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        assert found == [(_BATCH, True)] * (self._batches // _WORKERS * _WORKERS), "other rows"
        return took / parts.size


def _write(path: Path, rows: int) -> None:
    with path.open("wb") as file:
        for first in range(0, rows, 4096):
            some = np.arange(first, min(first + 4096, rows), dtype=np.uint64)
            file.write(np.repeat(some, _WORDS))
        os.fsync(file.fileno())


def measure(effort: Effort) -> list[Finding]:
    nbytes = 4 * effort.long_file
    rows = nbytes // PAGE_SIZE
    batches = max(effort.touched // 200, _WORKERS)
    with tempfile.TemporaryDirectory() as folder, free():
        path = Path(folder, "rows")
        _write(path, rows)
        shape = rows, _WORDS
        loader = _Loader(path, rows, batches)
        mapped = np.memmap(path, np.uint64, "r", shape=shape)
        paged = pagemove.open_array(path, dtype=np.uint64, shape=shape, block_size=PAGE_SIZE)
        what = f"batches of {_BATCH} rows of {PAGE_SIZE >> 10} KiB, cold, {_WORKERS} forked workers"
        subject, taken, baseline = f"{what}, by index", f"{what}, by take", "numpy.memmap, by index"
        samples = in_turn(
            [
                Way(subject, lambda: loader.run(paged, _item_by_item)),
                Way(taken, lambda: loader.run(paged, pagemove.take)),
                Way(baseline, lambda: loader.run(mapped, _item_by_item)),
            ],
            max(effort.passes // 3, 2),
        )
        note = f"a file of {nbytes >> 20} MiB; what forking takes is in it"
        return [
            speed(samples, subject, baseline, _TARGET, note),
            speed(samples, taken, baseline, _TARGET_TAKE, note),
        ]


if __name__ == "__main__":
    run_alone(measure)

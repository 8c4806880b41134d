"""A compressed zarr array summed at a limit of a quarter, against zarr itself in threads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import pagemove
from benchmarks._measure import Effort, Finding, free
from benchmarks._paging import QUARTER, Way, in_turn, speed
from benchmarks._report import run_alone
from benchmarks._stores import needed, warmed

_ROW = (4 << 20) // 8  # items of a chunk of 4 MiB
_TARGET = 0.8


def measure(effort: Effort) -> list[Finding]:
    needed("zarr")
    with tempfile.TemporaryDirectory() as folder:
        return _compared(f"{folder}/x.zarr", effort)


def _compared(path: str, effort: Effort) -> list[Finding]:
    import zarr

    from pagemove.stores.chunked import chunked_store

    rows = max(effort.file // (4 << 20), 8)
    theirs = zarr.create_array(path, shape=(rows, _ROW), chunks=(1, _ROW), dtype="f8")
    for row in range(rows):
        theirs[row] = np.random.default_rng(row).integers(0, 1000, _ROW).astype("f8")
    opened = zarr.open_array(path, mode="r")
    store = chunked_store(path)
    assert store is not None
    with store:
        array = pagemove.open_array(
            store, resident_limit=rows * (4 << 20) // QUARTER, block_size="2MiB"
        )
    warmed(pagemove.region_of(array))
    with ThreadPoolExecutor(store.concurrency) as pool:
        jobs: dict[str, Callable[[], float]] = {
            "SlicedStore, paged": lambda: float(np.asarray(array).sum()),
            f"zarr, {store.concurrency} threads": lambda: float(
                sum(pool.map(lambda row: float(np.asarray(opened[row]).sum()), range(rows)))
            ),
        }
        ways = [Way(name, lambda job=job: _timed(job, rows * _ROW)) for name, job in jobs.items()]
        with free():
            samples = in_turn(ways, effort.passes)
    ours, baseline = jobs
    return [speed(samples, ours, baseline, _TARGET, f"zstd, {rows} chunks of 4 MiB")]


def _timed(job: Callable[[], float], operations: int) -> float:
    began = time.perf_counter_ns()
    job()
    return (time.perf_counter_ns() - began) / operations


if __name__ == "__main__":
    run_alone(measure)

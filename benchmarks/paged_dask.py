"""The sum of an array on a cluster of two processes, of 256 MiB each for it, by Dask."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import pagemove
from benchmarks._measure import Effort, Finding, Unmeasurable, free
from benchmarks._paging import Way, in_turn, speed
from benchmarks._report import run_alone

_LIMIT = 256 << 20
_BLOCK = 2 << 20
_CHUNK = 64 << 20
_WORKERS = 2
_TARGET = 0.9
_LARGEST_GRAPH = 10 << 10


def _part(path: str, start: int, stop: int) -> Any:
    """Return a part of a file as `numpy.memmap` has it, on a worker."""
    return np.memmap(path, np.float64, "r")[start:stop]


def _mapped(path: Path, count: int, chunk: int) -> Any:
    import dask
    import dask.array as da

    load = dask.delayed(_part, pure=True)
    return da.concatenate(
        [
            da.from_delayed(
                load(str(path), at, min(at + chunk, count)),
                (min(at + chunk, count) - at,),
                np.float64,
            )
            for at in range(0, count, chunk)
        ]
    )


def _resident(chunk: Any) -> Any:
    region = pagemove.region_of(chunk)
    chunk[:1].sum()
    return np.array([region.stats().resident_nbytes])


def _seconds(lazy: Any, expected: float, path: Path, *, cold: bool) -> float:
    if cold:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    began = time.perf_counter_ns()
    found = float(lazy.sum().compute())
    took = time.perf_counter_ns() - began
    assert found == expected, "another sum"
    return float(took)


def measure(effort: Effort) -> list[Finding]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise Unmeasurable(f"dask.distributed is not installed: {error}") from None
    import pickle

    from pagemove.dask import from_array

    nbytes = 2 * effort.long_file
    count = nbytes // 8
    chunk = min(_CHUNK, nbytes // 4) // 8
    with tempfile.TemporaryDirectory() as folder, free():
        path = Path(folder, "numbers")
        with path.open("wb") as file:
            for at in range(0, count, chunk):
                file.write(np.arange(at, min(at + chunk, count), dtype=np.float64) % 1000)
            os.fsync(file.fileno())
        expected = float(np.memmap(path, np.float64, "r").sum())
        array = pagemove.open_array(
            path, dtype=np.float64, resident_limit=_LIMIT, block_size=_BLOCK
        )
        options = {"n_workers": _WORKERS, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(**options) as cluster, Client(cluster):
            paged, mapped = from_array(array, chunks=chunk), _mapped(path, count, chunk)
            assert len(pickle.dumps(paged.dask)) < _LARGEST_GRAPH
            findings = [
                _compared(paged, mapped, expected, path, max(effort.passes // 2, 2), cold=cold)
                for cold in (False, True)
            ]
            resident = paged.map_blocks(_resident, chunks=(1,), dtype=np.int64).compute()
            assert 0 < resident.max() <= _LIMIT
        assert pagemove.region_of(array).stats().bytes_read == 0
    return findings


def _compared(
    paged: Any, mapped: Any, expected: float, path: Path, passes: int, *, cold: bool
) -> Finding:
    state = "cold" if cold else "cached"
    subject = (
        f"sum of {paged.nbytes >> 20} MiB, {state}, {_WORKERS} processes of {_LIMIT >> 20} MiB"
    )
    baseline = "numpy.memmap in each task"
    ways = [
        Way(subject, lambda: _seconds(paged, expected, path, cold=cold)),
        Way(baseline, lambda: _seconds(mapped, expected, path, cold=cold)),
    ]
    return speed(in_turn(ways, passes), subject, baseline, _TARGET)


if __name__ == "__main__":
    run_alone(measure)

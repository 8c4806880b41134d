"""The sum of an array on a cluster of two processes, of 256 MiB each for it, by Dask."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import pagemove
from benchmarks._measure import Effort, Finding, Unmeasurable, free, fresh
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


def summed(nbytes: int, passes: int) -> list[dict[str, list[float]]]:
    """Return nanoseconds of each way, cached and cold: for an interpreter of its own."""
    import pickle

    from distributed import Client, LocalCluster

    from pagemove.dask import from_array

    count = nbytes // 8
    chunk = min(_CHUNK, nbytes // 4) // 8
    with tempfile.TemporaryDirectory() as folder:
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
            found = [
                in_turn(
                    [
                        Way("paged", partial(_seconds, paged, expected, path, cold=cold)),
                        Way("mapped", partial(_seconds, mapped, expected, path, cold=cold)),
                    ],
                    passes,
                )
                for cold in (False, True)
            ]
            resident = paged.map_blocks(_resident, chunks=(1,), dtype=np.int64).compute()
            assert 0 < resident.max() <= _LIMIT
        assert pagemove.region_of(array).stats().bytes_read == 0
        return found


def measure(effort: Effort) -> list[Finding]:
    if importlib.util.find_spec("distributed") is None:
        raise Unmeasurable("dask.distributed is not installed")
    nbytes = 2 * effort.long_file
    with free():
        found = fresh("benchmarks.paged_dask", "summed", nbytes, max(effort.passes // 2, 2))
    findings = []
    for state, samples in zip(("cached", "cold"), found, strict=True):
        processes = f"{_WORKERS} processes of {_LIMIT >> 20} MiB"
        subject = f"sum of {nbytes >> 20} MiB, {state}, {processes}"
        baseline = "numpy.memmap in each task"
        named = {subject: samples["paged"], baseline: samples["mapped"]}
        findings.append(speed(named, subject, baseline, _TARGET))
    return findings


if __name__ == "__main__":
    run_alone(measure)

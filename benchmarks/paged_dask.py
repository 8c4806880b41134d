"""The sum of an array on a cluster of two processes, of 256 MiB each for it, by Dask."""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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


@functools.cache
def _warm() -> npt.NDArray[np.float64]:
    """Return a buffer of one block, which stays in the processor's cache."""
    memory = mmap.mmap(-1, 2 * _BLOCK)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.float64)
    first = -whole.ctypes.data % _BLOCK // 8
    return whole[first : first + _BLOCK // 8]


def _copied(path: str, start: int, stop: int) -> Any:
    """Return the sum of a part, which is read into one warm buffer: the least that a copy costs."""
    total = 0.0
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(start, stop, _BLOCK // 8):
            some = _warm()[: min(_BLOCK // 8, stop - at)]
            assert os.preadv(fd, [some], 8 * at) == some.nbytes
            total += float(some.sum())
    finally:
        os.close(fd)
    return np.array([total])


def _by_tasks(part: Callable[..., Any], path: Path, count: int, chunk: int, items: int = 0) -> Any:
    """Make a Dask array of what `part` returns of each chunk: all its items, or so many."""
    import dask
    import dask.array as da

    load = dask.delayed(part, pure=True)
    bounds = [(at, min(at + chunk, count)) for at in range(0, count, chunk)]
    return da.concatenate(
        [
            da.from_delayed(load(str(path), start, stop), (items or stop - start,), np.float64)
            for start, stop in bounds
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
            paged = from_array(array, chunks=chunk)
            mapped = _by_tasks(_part, path, count, chunk)
            copied = _by_tasks(_copied, path, count, chunk, 1)
            assert len(pickle.dumps(paged.dask)) < _LARGEST_GRAPH
            found = [
                in_turn(
                    [
                        Way("paged", partial(_seconds, paged, expected, path, cold=cold)),
                        Way("mapped", partial(_seconds, mapped, expected, path, cold=cold)),
                        Way("copied", partial(_seconds, copied, expected, path, cold=cold)),
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
        baseline, least = "numpy.memmap in each task", "pread into a warm buffer in each task"
        named = {
            subject: samples["paged"],
            baseline: samples["mapped"],
            least: samples["copied"],
        }
        findings.append(speed(named, subject, baseline, _TARGET))
        note = "what a copy from the page cache lets be reached"
        findings.append(speed(named, least, baseline, None, note))
    return findings


if __name__ == "__main__":
    run_alone(measure)

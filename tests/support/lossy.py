"""A store whose flush may fail, and then has dropped what it was to make durable, as a disk does.

It is two files: what was written since the last flush is in one, what is durable in the other.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from pagemove import StoreError
from pagemove.stores import Store
from support.paging import Words

_KEPT = ("_path", "_nbytes", "flush_retryable", "concurrency")


class Lossy(Store):
    """See above.

    Parameters
    ----------
    path
        Of the durable file; the other one and the knobs are beside it.
    keeps
        Whether a flush that fails drops nothing.
    concurrency
        As of `Store`.
    """

    writable = True

    def __init__(self, path: Path, *, keeps: bool = False, concurrency: int = 1) -> None:
        self._path, self.flush_retryable, self.concurrency = path, keeps, concurrency
        self._nbytes = path.stat().st_size
        self._open()

    def _open(self) -> None:
        self._durable = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self._cache = os.open(self._path.with_suffix(".cache"), os.O_RDWR | os.O_CLOEXEC)
        with self._path.with_suffix(".knobs").open("r+b") as file:
            self._knobs = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
        self._written: set[int] = set()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def flushes(self) -> int:
        """How often it was flushed."""
        return int(self._knobs[1])

    def fail(self, times: int) -> None:
        """Let the next flushes fail."""
        self._knobs[0] = times

    def hold(self, *, flushes: bool = False, writes: bool = False) -> None:
        """Hold flushes before anything has come of them, and writes that have been done."""
        self._knobs[2:4] = flushes, writes

    @property
    def held(self) -> int:
        """How many calls have been held."""
        return int(self._knobs[4])

    def _wait(self, knob: int) -> None:
        self._knobs[4] += self._knobs[knob]
        while self._knobs[knob]:
            time.sleep(0.002)

    def read_into(self, offset: int, buffer: Any) -> None:
        if os.preadv(self._cache, [buffer], offset) != len(buffer):
            raise StoreError(errno.EIO, "short")

    def write(self, offset: int, data: Any) -> None:
        os.pwrite(self._cache, data, offset)
        self._written.update(range(offset, offset + len(data), 4096))
        self._wait(3)

    def flush(self) -> None:
        self._knobs[1] += 1
        self._wait(2)
        failing = self._knobs[0] > 0
        if failing:
            self._knobs[0] -= 1
        if failing and self.flush_retryable:
            raise StoreError(errno.EIO, "cannot flush")
        of, to = (self._durable, self._cache) if failing else (self._cache, self._durable)
        for offset in self._written:
            os.pwrite(to, os.pread(of, 4096, offset), offset)
        self._written.clear()
        if failing:
            raise StoreError(errno.EIO, "cannot flush, and what was written is gone")

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def lossy(folder: Path, contents: Words, **how: Any) -> Lossy:
    """Make such a store of what is to be in it."""
    path = folder / "durable"
    for name in (path, path.with_suffix(".cache")):
        name.write_bytes(contents.tobytes())
    path.with_suffix(".knobs").write_bytes(bytes(4096))
    return Lossy(path, **how)


def durable(store: Lossy) -> Words:
    """Read what a crash would leave."""
    return np.fromfile(store._path, np.uint64)

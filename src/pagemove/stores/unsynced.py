"""What a failed sync may have lost, until it is written again.

After fdatasync(2) has failed the kernel takes the pages for clean, whether they are or not, and a
second call succeeds. So a store that does not keep what was written has to remember where.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter

# More are taken together: then more has to be written again than was lost.
_MOST = 1 << 16

_start, _end = itemgetter(0), itemgetter(1)


class RangeSet:
    """Bytes, as ranges that neither touch nor overlap.

    Each change is one of the list: a child that is forked meanwhile finds the old or the new.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._ranges = list(ranges)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(self._ranges))

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` up to `end`."""
        if start >= end:
            return
        first = bisect.bisect_left(self._ranges, start, key=_end)
        last = bisect.bisect_right(self._ranges, end, key=_start)
        if first < last:
            start = min(start, self._ranges[first][0])
            end = max(end, self._ranges[last - 1][1])
        self._ranges[first:last] = [(start, end)]
        if len(self._ranges) > _MOST:
            self._ranges[:] = [(self._ranges[0][0], self._ranges[-1][1])]

    def remove(self, start: int, end: int) -> None:
        """Remove the bytes from `start` up to `end`."""
        first = bisect.bisect_right(self._ranges, start, key=_end)
        last = bisect.bisect_left(self._ranges, end, key=_start)
        if first >= last:
            return
        left, right = (self._ranges[first][0], start), (end, self._ranges[last - 1][1])
        self._ranges[first:last] = [each for each in (left, right) if each[0] < each[1]]

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Return the ranges from `start` up to `end` that are not in it."""
        for first, last in self:
            if start < min(first, end):
                yield start, min(first, end)
            start = max(start, last)
        if start < end:
            yield start, end


class Unsynced:
    """Which bytes the next sync answers for, and which a failed one may have lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._written = RangeSet()
        self._covered = RangeSet()  # by the sync that is under way
        self._lost = RangeSet()
        self._failures = 0

    def in_child(self) -> Unsynced:
        """Return a copy for a forked child, where its locks may be held forever."""
        found = Unsynced()
        found._written, found._lost = RangeSet(self._written), RangeSet(self._lost)
        for start, end in self._covered:
            found._written.add(start, end)
        return found

    @contextlib.contextmanager
    def writing(self, start: int, end: int) -> Iterator[None]:
        """Surround a write of some bytes. One that raises leaves nothing to answer for."""
        failures = self._failures
        yield
        with self._lock:
            if failures == self._failures:
                self._lost.remove(start, end)
                self._written.add(start, end)
            else:
                # What was under way when a sync failed may be lost by that.
                self._lost.add(start, end)

    def sync(self, call: Callable[[], object]) -> tuple[int, int] | None:
        """Make durable what was written; return the first bytes that are lost, if any.

        By one thread at a time: the kernel reports a failure once, and the next call succeeds.
        """
        with self._syncing:
            with self._lock:
                self._covered, self._written = self._written, RangeSet()
            try:
                call()
            except BaseException:
                with self._lock:
                    self._failures += 1
                    for start, end in (*self._covered, *self._written):
                        self._lost.add(start, end)
                raise
            finally:
                self._covered = RangeSet()
            with self._lock:
                return next(iter(self._lost), None)


def sync_file_system(path: str | os.PathLike[str]) -> None:
    """Make durable all that was written on the file system of a path: syncfs(2)."""
    import ctypes  # for this alone

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(path))
    finally:
        os.close(fd)

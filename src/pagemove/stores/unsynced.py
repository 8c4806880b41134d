"""What a failed sync may have lost, until it is written again.

After fdatasync(2) has failed the kernel takes the pages for clean, whether they are or not, and a
second call succeeds. So a store that does not keep what was written has to remember where.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Callable, Iterator

# More are taken together: then more has to be written again than was lost.
_MOST = 1 << 16


class _Ranges:
    """Bytes, as ranges that neither touch nor overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def add(self, start: int, end: int) -> None:
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]
        if len(self._starts) > _MOST:
            self._starts[1:], self._ends[:-1] = [], []

    def remove(self, start: int, end: int) -> None:
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = (self._starts[first], start), (end, self._ends[last - 1])
        kept = [each for each in (left, right) if each[0] < each[1]]
        self._starts[first:last] = [each[0] for each in kept]
        self._ends[first:last] = [each[1] for each in kept]


class Unsynced:
    """Which bytes the next sync answers for, and which a failed one may have lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._written = _Ranges()
        self._under_way: dict[object, tuple[int, int]] = {}
        self._lost = _Ranges()
        self._failures = 0

    @contextlib.contextmanager
    def writing(self, start: int, end: int) -> Iterator[None]:
        """Surround a write of some bytes."""
        me = object()
        with self._lock:
            self._under_way[me] = (start, end)
            self._written.add(start, end)
            failures = self._failures
        try:
            yield
            with self._lock:
                # What was under way when a sync failed may be lost by that.
                if failures == self._failures:
                    self._lost.remove(start, end)
        finally:
            with self._lock:
                del self._under_way[me]

    def sync(self, call: Callable[[], object]) -> tuple[int, int] | None:
        """Make durable what was written; give the first bytes that are lost, if any.

        By one thread at a time: the kernel tells one of a failure, and the next of success.
        """
        with self._syncing:
            with self._lock:
                covered, self._written = self._written, _Ranges()
                for start, end in self._under_way.values():
                    self._written.add(start, end)
            try:
                call()
            except BaseException:
                with self._lock:
                    self._failures += 1
                    for start, end in (*covered, *self._written):
                        self._lost.add(start, end)
                raise
            with self._lock:
                return next(iter(self._lost), None)

"""A store that does all that a store may do, and a disk that forgets what was not flushed.

`Unruly` puts troubles around another store, in the process that runs it: calls that take longer
than anybody waits, are done twice, are done in half, raise whatever can be raised, or end the
process. None of them breaks the promise of `Store`: what has returned is done, what has raised may
be done in part, and nothing is done after a call has ended.

`Disk` is what such a store is best put around. It is two files: what reads see, and what would be
left after a crash. So it shows what a flush is worth, not only what a write is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pagemove import StoreError
from pagemove.stores import Store
from support.exceptions import RAISED
from support.helpers import Words

_PAGE = 4096
_FIELDS = ("wild", "operation", "trouble", "gate", "lives", "calls", "held")
OPERATIONS = ("read", "write", "flush")
#: What may become of a call. Only a flush can be ``lost``, only what moves bytes ``torn``.
TROUBLES = ("slow", "late", "doubled", "before", "after", "torn", "late after", "lost", "killed")


class Whims:
    """Numbers that this process and the one that runs the store share; all 0 at first.

    Attributes
    ----------
    wild : int
        Of a thousand writes or flushes, how many are in trouble; of reads a third as many.
    operation, trouble : int
        The next call of ``OPERATIONS[operation]`` has ``TROUBLES[trouble - 1]``; 0: none has.
    gate : int
        Late calls of a store without a `late` time go on when this changes.
    lives : int
        How many more times the process may be ended.
    calls : int
        So far. Threads may miss one.
    held : int
        How many calls have begun to wait for the gate.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(8 * (len(_FIELDS) + len(TROUBLES))))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        object.__setattr__(self, "numbers", np.frombuffer(self._map, np.int64))

    def __getattr__(self, name: str) -> int:
        if name not in _FIELDS:
            raise AttributeError(name)
        return int(self.numbers[_FIELDS.index(name)])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS:
            self.numbers[_FIELDS.index(name)] = value
        else:
            object.__setattr__(self, name, value)

    def count(self, trouble: str) -> None:
        """Remember that a call was in trouble."""
        self.numbers[len(_FIELDS) + TROUBLES.index(trouble)] += 1

    @property
    def counts(self) -> dict[str, int]:
        """How many calls had each trouble."""
        counts = self.numbers[len(_FIELDS) :].tolist()
        return {name: number for name, number in zip(TROUBLES, counts, strict=True) if number}

    def order(self, operation: str, trouble: str) -> None:
        """Have the next call of an operation get into trouble."""
        self.operation = OPERATIONS.index(operation)
        self.trouble = 1 + TROUBLES.index(trouble)


class Disk(Store):
    """A file with a cache in front of it, which outlives the process but not the machine.

    Parameters
    ----------
    path : Path
        What is durable. Beside it are the cache, and which of its pages are newer.
    """

    writable = True
    concurrency = 8

    def __init__(self, path: Path) -> None:
        self.path = path
        self._nbytes = path.stat().st_size
        self._beside("cache").write_bytes(path.read_bytes())
        self._beside("newer").write_bytes(bytes(-(-self._nbytes // _PAGE)))
        self._open()

    def _beside(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}")

    def _open(self) -> None:
        self._device = os.open(self.path, os.O_RDWR)
        self._cache = os.open(self._beside("cache"), os.O_RDWR)
        with self._beside("newer").open("r+b") as file:
            self._newer = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        self._marking = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def read_into(self, offset: int, buffer: Any) -> None:
        view = memoryview(buffer).cast("B")
        if os.preadv(self._cache, [view], offset) != len(view):
            raise StoreError(errno.EIO, f"short read at {offset}")

    def write(self, offset: int, data: Any) -> None:
        view, at = memoryview(data).cast("B"), 0
        # In pieces, so that whoever is killed is so in the midst of one.
        while at < len(view):
            at += os.pwrite(self._cache, view[at : at + _PAGE], offset + at)
        with self._marking:
            self._newer[offset // _PAGE : -(-(offset + len(view)) // _PAGE)] = 1

    def flush(self, *, losing: int = 0) -> None:
        """Copy what is newer to the file; `losing` every so many pages of it, as a disk may."""
        with locked(self._beside("flushing"), fcntl.LOCK_EX):
            # Marked until it is copied, for this process may end in between; but not if it is
            # written meanwhile.
            pages = np.flatnonzero(self._newer)
            self._newer[pages] = 2
            for number, page in enumerate(pages.tolist()):
                if losing and number % losing == 0:
                    continue
                data = os.pread(self._cache, _PAGE, page * _PAGE)
                os.pwrite(self._device, data, page * _PAGE)
            with self._marking:
                self._newer[pages[self._newer[pages] == 2]] = 0

    def close(self) -> None:
        for name in ("_device", "_cache"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_nbytes": self._nbytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def durable(self) -> Words:
        """Read what a crash would leave."""
        return np.fromfile(self.path, np.uint64)

    def cached(self) -> Words:
        """Read what a reader is given."""
        return np.fromfile(self._beside("cache"), np.uint64)


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock that goes with the process, on a file that is made for it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Plan:
    """What goes wrong with how many calls.

    Attributes
    ----------
    seed : int
        Says which.
    troubles : tuple of str
        Of `TROUBLES`.
    late : float
        The most seconds that a late call takes; 0: it waits for the gate of the `Whims`.
    slow : float
        The most seconds that a slow call takes.
    """

    seed: int = 0
    troubles: tuple[str, ...] = ()
    late: float = 0.0
    slow: float = 0.01


class Unruly(Store):
    """Another store, in trouble.

    Parameters
    ----------
    inner : Store
        Does what is asked.
    folder : Path
        For what is shared with the process that runs it; of this store alone.
    plan : Plan
        Nothing goes wrong before ``whims.wild`` is set.
    """

    def __init__(self, inner: Store, folder: Path, plan: Plan) -> None:
        self._inner, self._folder, self._plan = inner, folder, plan
        self.concurrency, self.restartable = inner.concurrency, inner.restartable
        # A flush that raises has lost nothing, unless that is what it is to do.
        self.flush_retryable = "lost" not in plan.troubles
        self._open(create=True)

    def _open(self, *, create: bool = False) -> None:
        self.whims = Whims(self._folder / "whims", create=create)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._inner.nbytes

    @property
    def writable(self) -> bool:
        return self._inner.writable

    def read_into(self, offset: int, buffer: Any) -> None:
        view = memoryview(buffer).cast("B")
        half = len(view) // 2

        def part() -> None:
            self._inner.read_into(offset, view[:half])
            view[half:] = b"\xa5" * (len(view) - half)

        def again() -> None:
            view[:] = b"\x5a" * len(view)
            self._inner.read_into(offset, view)

        self._perform("read", lambda: self._inner.read_into(offset, view), part, again)

    def write(self, offset: int, data: Any) -> None:
        view = memoryview(data).cast("B")

        def whole() -> None:
            # As it is now: late is the call, not what it was called with.
            self._inner.write(offset, kept)

        kept = bytes(view)
        half = len(view) // 2 // 8 * 8
        self._perform("write", whole, lambda: self._inner.write(offset, kept[:half]), whole)

    def flush(self) -> None:
        self._perform("flush", self._inner.flush, self._inner.flush, self._inner.flush)

    def close(self) -> None:
        self._inner.close()

    def landed(self) -> bool:
        """Whether every call that was late has ended, or its process has."""
        try:
            with locked(self._folder / "late", fcntl.LOCK_EX | fcntl.LOCK_NB):
                return True
        except BlockingIOError:
            return False

    def _perform(
        self,
        operation: str,
        whole: Callable[[], object],
        part: Callable[[], object],
        again: Callable[[], object],
    ) -> None:
        with self._lock:
            self.whims.calls += 1
            chance = random.Random(f"{self._plan.seed} {self.whims.calls}")
            trouble = self._trouble(operation, chance)
        if trouble is None:
            whole()
            return
        raised = chance.choice(RAISED)
        with locked(self._folder / "late", fcntl.LOCK_SH):
            if trouble == "slow":
                time.sleep(chance.random() * self._plan.slow)
            elif trouble in ("late", "late after"):
                self._wait(chance)
            if trouble == "before":
                raise raised()
            if trouble in ("torn", "killed"):
                part()
                if trouble == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise raised()
            if trouble == "lost":
                assert isinstance(self._inner, Disk)
                self._inner.flush(losing=2)
                raise raised()
            whole()
            if trouble == "doubled":
                self._wait(chance)
                again()
            if trouble in ("after", "late after"):
                raise raised()

    def _trouble(self, operation: str, chance: random.Random) -> str | None:
        """Choose what becomes of a call."""
        whims = self.whims
        if whims.trouble and OPERATIONS[whims.operation] == operation:
            trouble = TROUBLES[whims.trouble - 1]
            whims.trouble = 0
        elif chance.randrange(1000) * (3 if operation == "read" else 1) < whims.wild:
            trouble = chance.choice(self._plan.troubles)
        else:
            return None
        if trouble == "lost" and operation != "flush":
            trouble = "torn"
        if trouble == "killed":
            if not whims.lives:
                return None
            whims.lives -= 1
        whims.count(trouble)
        return trouble

    def _wait(self, chance: random.Random) -> None:
        """Take longer than anybody waits."""
        if self._plan.late:
            time.sleep((0.3 + 0.7 * chance.random()) * self._plan.late)
            return
        gate, limit = self.whims.gate, time.monotonic() + 60
        self.whims.held += 1
        while self.whims.gate == gate and time.monotonic() < limit:
            time.sleep(0.002)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_inner", "_folder", "_plan", "concurrency", "restartable", "flush_retryable")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

"""Stores whose calls are late, reordered, done twice, or raise after they were done.

An `Unruly` store is a file, written and read by Python in the helper process. What it does to a
call is drawn from its seed; `Knobs` are numbers in a file that this process and the helper both
see, by which a test holds calls, releases them, and calms the store down. Whatever happens, it
keeps what `Store` asks for: once a call has returned or raised, nothing of it happens any more.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemove.stores import Store

Words = npt.NDArray[np.uint64]

_FIELDS = (
    *("calm", "hold_writes", "hold_reads", "hold_flushes", "hold_after"),
    *("reads", "writes", "flushes", "held", "raised", "doubled", "late", "swapped"),
)


class Knobs:
    """Numbers in shared memory, by their names; all 0 at first.

    Attributes
    ----------
    calm : int
        Not 0: every call does at once what it should, and is not held.
    hold_writes, hold_reads : int
        Calls whose range has byte ``n - 1`` wait while this is `n`; 0: none, -1: all.
    hold_flushes : int
        Flushes wait while this is not 0.
    hold_after : int
        Not 0: what is held has been done already; else it is done when it is let go.
    reads, writes, flushes : int
        Calls that have begun.
    held : int
        Calls that have been held.
    raised, doubled, late, swapped : int
        How often each thing was done to a call.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        numbers = np.frombuffer(self._map, np.int64)
        object.__setattr__(self, "numbers", numbers)
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> int:
        if name not in _FIELDS:
            raise AttributeError(name)
        return int(self.numbers[_FIELDS.index(name)])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS:
            self.numbers[_FIELDS.index(name)] = value
        else:
            object.__setattr__(self, name, value)

    def count(self, name: str) -> None:
        """Add one; of the threads of one process none is missed."""
        with self._lock:
            self.numbers[_FIELDS.index(name)] += 1


class Unruly(Store):
    """A file whose calls do not go as one would like.

    Parameters
    ----------
    path : Path
        Of the file. The knobs are beside it.
    seed : int
        Of what is done to calls.
    late, doubled, swapped, raising : float
        How likely a call is to be late (it sleeps, before or after), done twice, done only after a
        call that came later, and to raise: one half of those that raise have been done.
    seconds : float
        The longest that a call is late.
    code : int or None
        `errno` of what is raised; None: one of several, drawn.
    concurrency, restartable
        As of `Store`.
    """

    writable = True
    # What it raises is made up: fdatasync has not failed.
    flush_retryable = True

    def __init__(
        self,
        path: Path,
        *,
        seed: int = 0,
        late: float = 0.0,
        doubled: float = 0.0,
        swapped: float = 0.0,
        raising: float = 0.0,
        seconds: float = 0.05,
        code: int | None = errno.EIO,
        concurrency: int = 8,
        restartable: bool = True,
    ) -> None:
        self._path, self._nbytes, self._seed = path, path.stat().st_size, seed
        self._likely = {"late": late, "doubled": doubled, "swapped": swapped, "raised": raising}
        self._seconds, self._code = seconds, code
        self.concurrency, self.restartable = concurrency, restartable
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self.knobs = Knobs(self._path.with_suffix(".knobs"))
        self._random = random.Random(self._seed)
        self._begun = threading.Condition()
        self._number = 0

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def read_into(self, offset: int, buffer: Any) -> None:
        view = memoryview(buffer)

        def read() -> None:
            if os.preadv(self._fd, [view], offset) != len(view):
                raise OSError(errno.EIO, "short")

        self._do("reads", range(offset, offset + len(view)), read)

    def write(self, offset: int, data: Any) -> None:
        view = memoryview(data)

        def write() -> None:
            # In pieces, so that two that go on at once would be seen to be mixed.
            for at in range(0, len(view), 4096):
                os.pwrite(self._fd, view[at : at + 4096], offset + at)

        self._do("writes", range(offset, offset + len(view)), write)

    def flush(self) -> None:
        self._do("flushes", range(0), lambda: os.fdatasync(self._fd))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _do(self, kind: str, place: range, call: Any) -> None:
        with self._begun:
            self._number += 1
            self._begun.notify_all()
            drawn = {name: self._random.random() < p for name, p in self._likely.items()}
            done_first, seconds = (
                self._random.random() < 0.5,
                self._random.uniform(0, self._seconds),
            )
            code = self._code or self._random.choice(_CODES)
        self.knobs.count(kind)
        if self.knobs.calm:
            call()
            return
        after = self._held(kind, place) and self.knobs.hold_after
        if after:
            call()
        self._hold(kind, place)
        if drawn["swapped"]:
            self._wait_for_another()
        if drawn["late"]:
            self.knobs.count("late")
            if done_first:
                call()
            time.sleep(seconds)
        if drawn["raised"] and not done_first:
            self._raise(code)
        if not after:
            call()
        if drawn["doubled"]:
            self.knobs.count("doubled")
            call()
        if drawn["raised"]:
            self._raise(code)

    def _held(self, kind: str, place: range) -> bool:
        knob = getattr(self.knobs, f"hold_{kind}")
        if kind == "flushes":
            return bool(knob)
        return bool(knob < 0 or (knob and knob - 1 in place))

    def _hold(self, kind: str, place: range) -> None:
        if self._held(kind, place):
            self.knobs.count("held")
            while self._held(kind, place) and not self.knobs.calm:
                time.sleep(0.002)

    def _wait_for_another(self) -> None:
        """Let a call that comes later overtake this one, if one comes."""
        with self._begun:
            mine = self._number
            if self._begun.wait_for(lambda: self._number > mine, self._seconds):
                self.knobs.count("swapped")
        time.sleep(self._seconds / 4)

    def _raise(self, code: int) -> None:
        self.knobs.count("raised")
        raise OSError(code, "the store does as it likes")

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_path", "_nbytes", "_seed", "_likely", "_seconds", "_code")
        return {name: getattr(self, name) for name in (*kept, "concurrency", "restartable")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


_CODES = (
    *(errno.EIO, errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN, errno.ESHUTDOWN, errno.ECONNRESET),
    *(errno.ENOMEM, -2, 4096, 5000, 1 << 40),
)


def unruly(folder: Path, contents: Words, **how: Any) -> Unruly:
    """Make such a store of what is to be in it."""
    path = folder / f"{len(list(folder.glob('*.unruly')))}.unruly"
    path.write_bytes(contents.tobytes())
    Knobs(path.with_suffix(".knobs"), create=True)
    return Unruly(path, **how)


def in_file(store: Unruly) -> Words:
    """Read what is in the file."""
    return np.fromfile(store._path, np.uint64)

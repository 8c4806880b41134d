"""Threads in C that get in the way of a move: siblings.c, built once a session."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.native import load

COLD, PAGEOUT, DISCARD, READ, COUNT, FORK = range(6)

_SOURCE = Path(__file__).with_name("siblings.c")


@functools.cache
def library() -> ctypes.CDLL:
    """Build and load siblings.c."""
    loaded = load(_SOURCE)
    word, pointer = ctypes.c_uint64, ctypes.c_void_p
    loaded.sibling_start.restype = pointer
    loaded.sibling_start.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t, word, ctypes.c_int]
    for name in ("sibling_steps", "sibling_stop"):
        function = getattr(loaded, name)
        function.restype, function.argtypes = word, [pointer]
    loaded.sibling_pause.restype, loaded.sibling_pause.argtypes = None, [pointer, word]
    loaded.raw_lies.restype, loaded.raw_lies.argtypes = word, [ctypes.c_int, pointer, word]
    loaded.raw_holes.restype = None
    loaded.raw_holes.argtypes = [ctypes.c_int, pointer, pointer, word, pointer]
    return loaded


class Sibling:
    """A sibling over `pages` pages from `start` on, for as long as the block lasts.

    It has made its first step when the block begins. `found` is what it found, once it has ended.
    """

    def __init__(
        self, kind: int, start: int, pages: int, *, number: int = 1, cpu: int = -1
    ) -> None:
        self._how = (kind, start, pages, number, cpu)
        self._thread: int | None = None
        self.found = 0

    @property
    def steps(self) -> int:
        """Steps made until now."""
        return int(library().sibling_steps(self._thread))

    def pause(self, most: int) -> None:
        """Let it wait between steps, for a random time up to `most` turns of a loop."""
        library().sibling_pause(self._thread, most)

    def __enter__(self) -> Sibling:
        self._thread = library().sibling_start(*self._how)
        if not self._thread:
            raise MemoryError("no thread for a sibling")
        while not self.steps:
            os.sched_yield()
        return self

    def __exit__(self, *exception: object) -> None:
        self.found = int(library().sibling_stop(self._thread))


@contextmanager
def apart() -> Iterator[int]:
    """Keep this thread off the last CPU, and give that CPU's number: what races must really run.

    -1, any CPU, where there is only one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        yield -1
        return
    os.sched_setaffinity(0, cpus[:-1])
    try:
        yield cpus[-1]
    finally:
        os.sched_setaffinity(0, cpus)

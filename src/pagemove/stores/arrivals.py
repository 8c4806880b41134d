"""What has arrived of an array that is handed over: where it is kept, and which of it is there.

The thread that has claimed a unit writes it, and no thread reads it before it is there. So bytes
that come twice, or late, never land on top of others. A unit that was only asked for, in the
background, any thread may claim; one that can wait for it does not, so that it comes once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from typing import Any

import numpy as np

from pagemove.stores.blockfile import write_all
from pagemove.stores.descriptors import Descriptor

MISSING, ASKED, UNDER_WAY, HERE = range(4)
# Units at once, a multiple of 8.
_PACKED = 1 << 20


class Arrivals:
    """The bytes that are here, in an unnamed file, and the state of every unit.

    Parameters
    ----------
    nbytes, unit : int
        Of the whole, and of what arrives as one.
    directory : str, optional
        For the file; by default that for temporary files. ``"memory"``: memory.
    """

    def __init__(self, nbytes: int, unit: int, directory: str | None) -> None:
        self.nbytes, self.unit = nbytes, unit
        self.units = -(-nbytes // unit)
        self.missing = self.units
        self.changed = threading.Condition()
        self._states = bytearray(self.units)
        self._file = _Unnamed(directory)
        os.ftruncate(self._file.fd, nbytes)

    def span(self, first: int, end: int) -> tuple[int, int]:
        """Return the bytes of units: the first, and behind the last."""
        return first * self.unit, min(end * self.unit, self.nbytes)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Read bytes that are here."""
        at = 0
        while at < len(view):
            got = os.preadv(self._file.fd, [view[at:]], offset + at)
            if not got:
                raise OSError(f"the file of what has arrived ends at byte {offset + at}")
            at += got

    def write(self, offset: int, data: Any) -> None:
        """Write bytes of units that are here, or that this thread has claimed."""
        write_all(self._file.fd, data, offset)

    def ask(self, first: int, end: int, most: int) -> tuple[int, int] | None:
        """Ask for the first run of up to `most` units, between two, that nobody asks for or has."""
        with self.changed:
            start = self._states.find(MISSING, first, end)
            if start < 0:
                return None
            stop, last = start, min(end, start + most)
            while stop < last and self._states[stop] == MISSING:
                self._states[stop] = ASKED
                stop += 1
            return start, stop

    def unask(self, first: int, end: int) -> None:
        """Say that those of a run that nobody has claimed since will not come."""
        with self.changed:
            while (first := self._states.find(ASKED, first, end)) >= 0:
                self._states[first] = MISSING
            self.changed.notify_all()

    def claim(self, first: int, end: int, *, asked: bool) -> list[tuple[int, int]]:
        """Claim the missing units of a run, or also those `asked` for; return them, as runs."""
        wanted = (MISSING, ASKED) if asked else (MISSING,)
        runs: list[tuple[int, int]] = []
        with self.changed:
            for at in range(first, end):
                if self._states[at] in wanted:
                    self._states[at] = UNDER_WAY
                    begin = runs.pop()[0] if runs and runs[-1][1] == at else at
                    runs.append((begin, at + 1))
        return runs

    def land(self, first: int, end: int) -> None:
        """Say that claimed units are here."""
        with self.changed:
            self._states[first:end] = bytes([HERE]) * (end - first)
            self.missing -= end - first
            self.changed.notify_all()

    def drop(self, first: int, end: int) -> None:
        """Give a claim up."""
        with self.changed:
            self._states[first:end] = bytes([MISSING]) * (end - first)
            self.changed.notify_all()

    def put(self, first: int, end: int, data: memoryview | None) -> None:
        """Keep units that have arrived, except those already here; None: they are zero."""
        base = first * self.unit
        runs = self.claim(first, end, asked=True)
        while runs:
            start, stop = runs.pop()
            try:
                self.fill(start, stop, None if data is None else data[start * self.unit - base :])
            except BaseException:
                for run in runs:
                    self.drop(*run)
                raise

    def fill(self, first: int, end: int, data: memoryview | None) -> None:
        """Keep units that this thread has claimed; where it fails the claim is given up."""
        at, stop = self.span(first, end)
        try:
            if data is not None:  # a hole of the file is zero
                self.write(at, data[: stop - at])
        except BaseException:
            self.drop(first, end)
            raise
        self.land(first, end)

    def are_here(self, first: int, end: int) -> bool:
        """Return whether all units of a run are."""
        return self._states.count(HERE, first, end) == end - first

    def wait(self, first: int, end: int, deadline: float, overdue: float = 0.0) -> None:
        """Wait until none of them is under way any more; TimeoutError.

        Nor asked for: of these until `overdue`.
        """
        with self.changed:
            while True:
                now = time.monotonic()
                asked = now < overdue and self._states.find(ASKED, first, end) >= 0
                if not asked and self._states.find(UNDER_WAY, first, end) < 0:
                    return
                if now >= deadline:
                    raise TimeoutError("no answer from the giver")
                self.changed.wait((min(overdue, deadline) if asked else deadline) - now)

    def bits(self) -> bytes:
        """Return which units are here, a bit each."""
        states = np.frombuffer(self._states, np.uint8)
        packed = bytearray()
        with self.changed:
            for at in range(0, self.units, _PACKED):
                here = states[at : at + _PACKED] == HERE
                packed += np.packbits(here, bitorder="little").data
        return bytes(packed)

    def flush(self) -> None:
        """See that no write to the file has failed since."""
        os.fdatasync(self._file.fd)

    def close(self) -> None:
        """Drop all of it. Twice is fine."""
        self._file.close()


class _Unnamed(Descriptor):
    """A file without a name, or memory."""

    def __init__(self, directory: str | None) -> None:
        if directory == "memory":
            fd = os.memfd_create("pagemove handed over")
            try:
                super().__init__(f"/proc/self/fd/{fd}", os.O_RDWR)
            finally:
                os.close(fd)
            return
        folder = tempfile.gettempdir() if directory is None else directory
        with contextlib.suppress(OSError):
            super().__init__(folder, os.O_RDWR | os.O_TMPFILE, 0o600)
            return
        with tempfile.NamedTemporaryFile(dir=folder) as made:
            super().__init__(made.name, os.O_RDWR)

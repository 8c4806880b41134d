"""Which lines of a program have faulted most: an estimate, by looking at its threads in turn."""

from __future__ import annotations

import _thread
import collections
import linecache
import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from types import FrameType

#: Seconds between two looks, and while nothing has faulted for a while.
_INTERVAL = 0.01
_IDLE_INTERVAL = 0.1
_IDLE_AFTER = 50
#: Of the fields of /proc/.../stat behind the name: minor faults and major ones.
_FAULTS = (7, 9)

#: A file, a line of it, and the function that it is in.
Line = tuple[str, int, str]


class Lines:
    """Counts the faults of each line, from `begin` on.

    A thread of this object's looks every 10 ms how many have been added, and charges them to the
    line that the program is in then: its own, if one is on the stack, else the innermost. Of
    several threads each has a share by how many faults of all kinds the kernel has counted for it.
    What has passed since the last look may have been another line, above all under code that does
    not release the GIL.

    Parameters
    ----------
    faults : callable
        Returns how many faults there have been, so that threads are looked at only after some.
    """

    def __init__(self, faults: Callable[[], int]) -> None:
        self._faults = faults
        self._counts: collections.defaultdict[Line, float] = collections.defaultdict(float)
        self._seen = 0
        self._looking = _thread.allocate_lock()
        self._known: dict[int, int] = {}  # of each thread
        self._libraries = tuple(
            {sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")}
        )
        self._own = os.path.dirname(os.path.dirname(__file__)) + os.sep

    def begin(self) -> None:
        """Look from now on, until the process ends."""
        # Not by `threading`, whose list of threads is the program's.
        _thread.start_new_thread(self._look_on, ())

    def _look_on(self) -> None:
        pause, never = _thread.allocate_lock(), 0
        pause.acquire()
        while True:
            pause.acquire(timeout=_INTERVAL if never < _IDLE_AFTER else _IDLE_INTERVAL)
            never = 0 if self.look() else never + 1

    def look(self) -> bool:
        """Charge what was added since the last look; say whether there was anything.

        A signal handler that comes while another thread looks leaves it to that one.
        """
        if not self._looking.acquire(blocking=False):
            return False
        try:
            return self._charge()
        finally:
            self._looking.release()

    def _charge(self) -> bool:
        added = self._faults() - self._seen
        if not added:
            return False
        self._seen += added
        # A frame that is held on to keeps arrays when its function has returned: none is, while
        # another thread may run.
        lines = {
            thread: line
            for thread, frame in sys._current_frames().items()
            if (line := self._line_of(frame)) is not None
        }
        threads = tasks()
        counts = {task: faults_of(task) for task in threads}
        # Without those that have ended meanwhile.
        known = {task: count for task, count in counts.items() if count is not None}
        shares = {
            threads[task]: max(count - self._known.get(task, 0), 0)
            for task, count in known.items()
            if threads[task] in lines
        }
        self._known = known
        # Where all were those of threads without Python, somebody waits for these.
        shares = shares if any(shares.values()) else dict.fromkeys(shares, 1)
        total = sum(shares.values())
        for thread, share in shares.items():
            if share:
                self._counts[lines[thread]] += added * share / total
        return True

    def _line_of(self, innermost: FrameType) -> Line | None:
        """Return the line of the program that a thread is in, or of a library; not of this one."""
        found: Line | None = None
        frame: FrameType | None = innermost
        while frame is not None:
            name = frame.f_code.co_filename
            if not name.startswith(("<frozen", self._own, *self._libraries)):
                return line_in(frame)
            if found is None and not name.startswith(self._own):
                found = line_in(frame)
            frame = frame.f_back
        return found

    def most(self, count: int) -> list[tuple[Line, float]]:
        """List lines, most faults first, each with its share of all of them."""
        found = sorted(self._counts.copy().items(), key=lambda each: -each[1])
        total = sum(faults for _, faults in found)
        return [(line, faults / total) for line, faults in found[:count]]


def line_in(frame: FrameType) -> Line:
    """Return the line that a frame is in."""
    return frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_qualname


def tasks() -> dict[int, int]:
    """Return the threads that `threading` knows: the kernel's number of each, and Python's."""
    return {
        each.native_id: each.ident
        for each in threading.enumerate()
        if each.native_id is not None and each.ident is not None
    }


def faults_of(task: int) -> int | None:
    """Return how many faults a thread has had, of all kinds; None if it has ended."""
    try:
        with open(f"/proc/self/task/{task}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return sum(int(fields[place]) for place in _FAULTS)


def text_of(line: Line) -> str:
    """Return what a report says of a line: where it is, and what it says."""
    name, number, function = line
    source = linecache.getline(name, number).strip()
    return f"{name}:{number} in {function}" + (f": {source}" if source else "")

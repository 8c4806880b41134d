"""Trying again what may succeed the next time, until a deadline."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_SLICE = 0.1
# A thread that is ready may have to wait for a CPU; this much longer, and it was stopped.
_GAP = 0.25


class RunningTime:
    """A clock without the time in which the process was stopped, such as by ^Z or a batch system.

    Between entering and leaving it a thread wakes up ten times a second: where it did not for much
    longer, nothing of this process could run.
    """

    def __init__(self) -> None:
        self._stopped = 0.0
        self._last = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunningTime:
        monkey = sys.modules.get("gevent.monkey")
        # What gevent has for threads runs only while the others wait.
        if monkey is None or not monkey.is_module_patched("threading"):
            thread = threading.Thread(target=self._tick, name="pagemove-clock", daemon=True)
            with contextlib.suppress(RuntimeError):  # a limit, or the interpreter's end
                thread.start()
                self._thread = thread
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def __call__(self) -> float:
        """Return the seconds of it."""
        with self._lock:
            now = time.monotonic()
            if self._thread is not None and now > self._last + _GAP:
                self._stopped += now - self._last - _SLICE
            self._last = now
            return now - self._stopped

    def _tick(self) -> None:
        while not self._over.wait(_SLICE):
            self()


def patiently(
    call: Callable[[float], Result],
    seconds: float,
    transient: Callable[[Exception], bool],
    *,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Call until it succeeds, fails for good, or the time is over.

    Pauses double, and are anything between nothing and that long: many clients whose server comes
    back do not all call at once.

    Parameters
    ----------
    call : callable
        Takes how many seconds are left for it.
    seconds : float
        For all calls and pauses together. One call is made whatever they are.
    transient : callable
        Tells whether an exception may be another the next time.
    pause, clock : callable
        For tests.

    Raises
    ------
    Exception
        Whatever the last call raised, with a note of how many there were.
    """
    deadline = clock() + seconds
    longest, tries = _FIRST_PAUSE, 0
    while True:
        tries += 1
        try:
            return call(max(deadline - clock(), 0.001))
        except Exception as error:
            wait = random.uniform(0, longest)
            # A call in the last moment would fail for lack of time, and hide why the others did.
            if not transient(error) or clock() + wait >= deadline - seconds / 20:
                if tries > 1:
                    error.add_note(f"after {tries} tries")
                raise
        pause(wait)
        longest = min(2 * longest, _LONGEST_PAUSE)

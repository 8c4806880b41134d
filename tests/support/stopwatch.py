"""How long something takes on a machine that others use too."""

from __future__ import annotations

import threading
import time

_PAUSE = 0.01


class Stopwatch:
    """Counts the seconds in which this process ran.

    A thread ticks. A tick that comes late, since others have the processors, counts for two at
    most: load shortens what is measured, and never stretches it.
    """

    def __init__(self) -> None:
        self._counted, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._tick)

    def _tick(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(_PAUSE):
            now = time.monotonic()
            self._counted += min(now - before, 2 * _PAUSE)
            before = now

    @property
    def seconds(self) -> float:
        """So far."""
        return self._counted

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

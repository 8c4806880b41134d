"""Trying again what may succeed the next time, until a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


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

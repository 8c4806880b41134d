"""What a call came to, said the same way for the kernel and for the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pagemove
from model import CallError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to, in the kernel or in the model."""

    errno: int | None
    moved: int
    index: int | None
    value: object = None


def in_kernel(call: Callable[[], object]) -> Outcome:
    """Make a call of the library or the kernel."""
    try:
        value = call()
    except pagemove.RemapError as error:
        return Outcome(error.errno, error.moved, error.index)
    except OSError as error:
        return Outcome(error.errno, 0, None)
    return Outcome(None, value if isinstance(value, int) else 0, None, value)


def in_model(call: Callable[[], object]) -> Outcome:
    """Make a call of the model."""
    try:
        value = call()
    except CallError as error:
        return Outcome(error.errno, error.moved, error.index)
    return Outcome(None, value if isinstance(value, int) else 0, None, value)

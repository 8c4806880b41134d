"""What is done first in a child made by fork.

The interpreter calls handlers in the order in which they were registered, and what a program has
registered after it imported this library may use it. The modules that have something to do are
imported later, when they are needed: theirs is done with what was registered at the import.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

_done: list[Callable[[], object]] = []


def first_do(call: Callable[[], object]) -> None:
    """Have it called in each child that is made by fork from now on, before what others do."""
    _done.append(call)


def call_each(calls: Sequence[Callable[[], object]]) -> None:
    """Call all of them, in order, also if one fails; raise what the last of those raised."""
    with contextlib.ExitStack() as stack:
        for call in reversed(calls):
            stack.callback(call)


def _in_child() -> None:
    call_each(_done)


os.register_at_fork(after_in_child=_in_child)

"""What is called many times to see whether something grows: a register of public calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

#: By the name in `pagemove.__all__`: makes what is needed, then the function to call many times.
CALLS: dict[str, Callable[[], contextlib.AbstractContextManager[Callable[[], object]]]] = {}


def calls(*names: str) -> Callable[[Callable[[], Iterator[Callable[[], object]]]], None]:
    """Register a generator that prepares, yields a function, and cleans up."""

    def register(generator: Callable[[], Iterator[Callable[[], object]]]) -> None:
        makes = contextlib.contextmanager(generator)
        CALLS.update(dict.fromkeys(names, makes))

    return register


def fails(function: Callable[..., object], *arguments: object, **named: object) -> None:
    """Call it, and demand that it raises."""
    with pytest.raises((OSError, ValueError, TypeError, BufferError, IndexError)):
        function(*arguments, **named)

"""Regions whose changes are saved when the interpreter exits, whatever the program forgot."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref
from typing import Protocol, TextIO

from pagemove._native.mapping import generation
from pagemove._native.remap import may_tell


class Savable(Protocol):
    """Something with changes that would be lost."""

    def _save_or_tell(self) -> None:
        """Save them, or say on standard error that it cannot be done.

        Raises what a signal handler has raised, after it has said so.
        """


_live: weakref.WeakSet[Savable] = weakref.WeakSet()
_process = 0  # the generation of it for which multiprocessing was told


def save_at_exit(one: Savable) -> None:
    """Have it saved at a normal exit of the interpreter, if it is still there."""
    global _process
    _live.add(one)
    # The children of multiprocessing end by os._exit, without what is registered with atexit.
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _process != generation():
        _process = generation()
        util.Finalize(None, _save_all, exitpriority=0)


@atexit.register
def _save_all() -> None:
    interruption = None
    for one in list(_live):
        try:
            one._save_or_tell()
        # Control-C ends the saving of one region, which says so. It says nothing of the others.
        except BaseException as reason:
            interruption = interruption or reason
    if interruption is not None:
        raise interruption


def tell(message: str) -> None:
    """Write a line to standard error, also when the interpreter has taken down `sys.stderr`.

    Not where descriptor 2 has become another file since the library was loaded: a message must not
    go into a file of the program. Where it is closed or full, nobody can be told.
    """
    line = f"pagemove: {message}\n"
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None and not _is_descriptor_two(sys.stderr):
            sys.stderr.write(line)
            sys.stderr.flush()
        elif may_tell():
            os.write(2, line.encode(errors="backslashreplace"))


def _is_descriptor_two(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False

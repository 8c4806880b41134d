"""Reads and writes of files and sockets where the kernel does not reach paged arrays.

It reports the faults of user code alone there. So a library that is loaded before all others stands
before the C library's read, write, recv, fread ... and copies through ordinary memory what is paged
(`_native/bounce`). The loader does that at the start of a program alone: so the interpreter
re-executes itself (execve), as the same process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Any

import pagemove._native

_PRELOAD = "LD_PRELOAD"
# What LD_PRELOAD was before, for the time until it is that again.
_BEFORE = "PAGEMOVE_PRELOAD_BEFORE"


def has_reexecuted() -> bool:
    """Whether this is after `reexecute`; restores LD_PRELOAD for processes started from here on."""
    before = os.environ.pop(_BEFORE, None)
    if before:
        os.environ[_PRELOAD] = before
    elif before is not None:
        os.environ.pop(_PRELOAD, None)
    return before is not None


def install(address: int, nbytes: int) -> bool:
    """Have calls on so many bytes at an address copy; False if that cannot be here."""
    try:
        bounce: Any = ctypes.CDLL(None).pagemove_bounce
    except AttributeError:
        return False
    bounce.argtypes, bounce.restype = (ctypes.c_size_t, ctypes.c_size_t), None
    bounce(address, address + nbytes)
    return True


def reexecute() -> None:
    """Re-execute the interpreter (execve) with the library; return if that cannot be."""
    library = os.path.join(os.path.dirname(pagemove._native.__file__), "bounce.so.1")
    before = os.environ.get(_PRELOAD, "")
    # The loader takes a space and a colon for the end of a name.
    if not sys.executable or {" ", ":"} & {*library} or not os.path.exists(library):
        return
    preload = f"{library}:{before}" if before else library
    environment = {**os.environ, _PRELOAD: preload, _BEFORE: before}
    with contextlib.suppress(OSError):  # this user may not execute it
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)

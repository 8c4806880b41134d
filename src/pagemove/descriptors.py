"""Descriptors that the library keeps, in a process that is not its own."""

from __future__ import annotations

import fcntl
import os


def keep(fd: int) -> int:
    """Return a descriptor of the same file above the standard three; close a lower one.

    A program that runs without standard streams would write to it, or be written to by it.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def identity_of(fd: int) -> tuple[int, int]:
    """Return which file a descriptor is of; (0, 0) where it is closed.

    The program may have closed a number and opened a file of its own under it.
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino

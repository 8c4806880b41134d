"""Descriptors that belong to one process: closed when dropped, and in a forked child at once.

A lock of flock(2) or F_OFD_SETLK belongs to the open file, and a forked child shares that: it would
keep the lock for as long as it lives. So a child closes its copy; and who closes the file unlocks
it first, for a child may not have come to that yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Callable
from typing import Protocol

from pagemove import children
from pagemove.descriptors import identity_of, keep


class _Inherited(Protocol):
    def _in_child(self) -> None: ...


# By identity: a store may be of a class whose objects have no hash.
_inherited: weakref.WeakValueDictionary[int, _Inherited] = weakref.WeakValueDictionary()


def tell_in_child(inherited: _Inherited) -> None:
    """Have its method `_in_child` called in each child that is made by fork from now on."""
    _inherited[id(inherited)] = inherited


def _in_child() -> None:
    # Also if one fails: what one holds on to may be another's, and the parent's.
    children.call_each([each._in_child for each in list(_inherited.values())])


children.first_do(_in_child)


def open_high(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """Open a file close-on-exec, with none of the three lowest descriptors."""
    return keep(os.open(path, flags | os.O_CLOEXEC, mode))


def lock_whole(file: Descriptor) -> None:
    """Lock a file with flock(2), until it is closed; BlockingIOError if another has it."""
    fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.unlock = lambda fd: fcntl.flock(fd, fcntl.LOCK_UN)


def shown(path: str | os.PathLike[str]) -> str:
    """Spell a path so that it can be printed, whatever bytes are in it."""
    return os.fspath(path).encode(errors="backslashreplace").decode()


class Descriptor:
    """A descriptor that is closed when the last thread that uses it drops it.

    Attributes
    ----------
    fd : int
        -1 once closed.
    unlock : callable, optional
        Called with it before it is closed, but in a child.
    """

    def __init__(self, path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> None:
        self.fd = -1
        self.unlock: Callable[[int], object] | None = None
        self.fd = open_high(path, flags, mode)
        self._identity = identity_of(self.fd)
        tell_in_child(self)

    def close(self) -> None:
        """Close it. Twice is fine."""
        fd, self.fd = self.fd, -1
        # The program may have closed it, and have a file of its own under its number.
        if fd >= 0 and identity_of(fd) == self._identity:
            try:
                self._give_up(fd)
            finally:
                os.close(fd)

    def release(self) -> None:
        """Unlock it now, though others may still read from it."""
        if self.fd >= 0 and identity_of(self.fd) == self._identity:
            self._give_up(self.fd)

    def _give_up(self, fd: int) -> None:
        unlock, self.unlock = self.unlock, None
        if unlock is not None:
            with contextlib.suppress(OSError):
                unlock(fd)

    def names(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path leads to this very file. False where it leads nowhere."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path))
        except FileNotFoundError:
            return False

    def _in_child(self) -> None:
        self.unlock = None
        self.close()

    def __del__(self) -> None:
        self.close()

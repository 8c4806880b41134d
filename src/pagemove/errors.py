"""Every exception of pagemove, and the one place where an errno becomes one."""

from __future__ import annotations

import errno as _errno
import os
from typing import Any


class RemapError(OSError):
    """A call that moves pages or mappings failed.

    Attributes
    ----------
    errno : int
        What the contract of the call says of the failure.
    moved : int
        Bytes that were moved before it; 0 where nothing was.
    index : int or None
        For `move_many`: position of the first page that was not moved.
    address : int or None
        The first offending address, where one is known.
    """

    def __init__(
        self,
        errno: int,
        message: str,
        *,
        moved: int = 0,
        index: int | None = None,
        address: int | None = None,
    ) -> None:
        super().__init__(errno, message)
        self.moved = moved
        self.index = index
        self.address = address

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the progress made, so that a worker process can report it."""
        state = {"moved": self.moved, "index": self.index, "address": self.address}
        return (type(self), (self.errno, self.strerror), state)


class SourceHole(RemapError):  # noqa: N818 (the contract pins the name)
    """ENOENT: there is no page in the source, and holes were not allowed."""


class DestinationMapped(RemapError):  # noqa: N818
    """EEXIST: something is in the destination already."""


class PageShared(RemapError):  # noqa: N818
    """EBUSY: the page is shared with another process, merged by KSM, or in use by I/O."""


class UnsupportedError(RemapError):
    """The kernel, what this process may do on it, or this version of pagemove does not allow it."""


class StoreError(OSError):
    """A store could not be read, written, or made durable.

    The message names the store, the place, the cause, how many tries there were, and what to do.

    Attributes
    ----------
    errno : int
        Of the system call; EIO where the store gave or took fewer bytes than it should.
    store : str
        Which store: for a `pagemove.stores.FileStore` its path.
    operation : str
        ``"read"``, ``"write"`` or ``"flush"``.
    offset : int or None
        First byte, in the store, of what could not be read or written; None for a flush.
    """

    def __init__(
        self, errno: int, message: str, *, store: str, operation: str, offset: int | None = None
    ) -> None:
        super().__init__(errno, message)
        self.store = store
        self.operation = operation
        self.offset = offset

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with all that is known, so that a worker process can report it."""
        known = {"store": self.store, "operation": self.operation, "offset": self.offset}
        return (_store_error, (type(self), self.errno, self.strerror, known))


def _store_error(
    kind: type[StoreError], errno: int, message: str, known: dict[str, Any]
) -> StoreError:
    return kind(errno, message, **known)


class KernelFaultsWarning(RuntimeWarning):
    """System calls on paged memory that is not resident fail in this process.

    Given once, when the first region is made whose `PagedMemory.kernel_faults` is False: see
    `pagemove.pinned`.
    """


_CLASSES: dict[int, type[RemapError]] = {
    _errno.ENOENT: SourceHole,
    _errno.EEXIST: DestinationMapped,
    _errno.EBUSY: PageShared,
}


def remap_error(
    errno: int,
    message: str,
    *,
    moved: int = 0,
    index: int | None = None,
    address: int | None = None,
) -> RemapError:
    """Make the exception whose class belongs to `errno`."""
    kind = _CLASSES.get(errno, RemapError)
    return kind(errno, message, moved=moved, index=index, address=address)


def describe(errno: int) -> str:
    """Return the name and the text of an errno: ``EBUSY (Device or resource busy)``."""
    return f"{_errno.errorcode.get(errno, errno)} ({os.strerror(errno)})"


_DOING = {"read": "read", "write": "write", "flush": "make durable"}


def store_error(
    errno: int,
    *,
    store: str,
    operation: str,
    offset: int | None = None,
    tries: int = 1,
    remedy: str,
) -> StoreError:
    """Make the exception of an operation that failed, for good or after so many tries.

    An `errno` of 0 stands for a store that gave or took fewer bytes than it should.
    """
    place = "" if offset is None else f" at byte {offset}"
    cause = describe(errno) if errno else "fewer bytes than there should be"
    after = "" if tries <= 1 else f" in {tries} tries"
    return StoreError(
        errno or _errno.EIO,
        f"cannot {_DOING[operation]} {store}{place}{after}: {cause}; {remedy}",
        store=store,
        operation=operation,
        offset=offset,
    )

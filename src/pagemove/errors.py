"""Every exception of pagemove, and the one place where an errno becomes one."""

from __future__ import annotations

import errno as _errno
import os


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
    """EBUSY: the page is shared with another process, merged by KSM, or pinned for I/O."""


class UnsupportedError(RemapError):
    """The kernel, or what this process may do on it, does not allow the call."""


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
    """Give the name and the text of an errno: ``EBUSY (Device or resource busy)``."""
    return f"{_errno.errorcode.get(errno, errno)} ({os.strerror(errno)})"

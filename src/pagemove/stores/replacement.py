"""A new file that replaces another: with its owner and mode, and a name that no file has."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pagemove.stores import blockfile
from pagemove.stores.blockfile import Header
from pagemove.stores.descriptors import Descriptor, lock_whole, open_high

_ACL = "system.posix_acl_access"


class Replacement:
    """A file beside another, on its way into the place of that.

    Attributes
    ----------
    file : Descriptor
        Of the new file, which is locked.
    """

    def __init__(self, file: Descriptor, name: Path, path: Path) -> None:
        self.file = file
        self._name = name
        self._path = path

    @property
    def placed(self) -> bool:
        """Whether the path of the old file leads to it."""
        return self.file.names(self._path)

    def take_place(self) -> None:
        """Rename it over the old file."""
        try:
            os.rename(self._name, self._path)
        except OSError:
            # Of a file server the answer may have been lost, and not the request.
            if not self.placed:
                raise


@contextlib.contextmanager
def beside(path: Path, old: Descriptor, header: Header) -> Iterator[Replacement]:
    """Make a locked file without blocks in the folder of another, with its owner and mode.

    It is removed if it has not taken the place of the other by the end. OSError where what may
    replace the other cannot be made.
    """
    if os.fstat(old.fd).st_nlink > 1:
        raise OSError(errno.EMLINK, "it has several hard links, and a new file would have one")
    discard(path, old, header)
    name = _name(path, old, header)
    file = Descriptor(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    fresh = Replacement(file, name, path)
    try:
        lock_whole(file)
        # Before it holds anything that other users must not read.
        _take_permissions(old.fd, file.fd)
        blockfile.write_header(file.fd, header)
        yield fresh
    finally:
        if not fresh.placed and file.names(name):
            os.unlink(name)


def discard(path: Path, old: Descriptor, header: Header) -> None:
    """Remove what a process that was killed has left beside a file; nothing else."""
    name = _name(path, old, header)
    try:
        left = Descriptor(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    found = os.fstat(left.fd)
    ours = found.st_size == 0
    if stat.S_ISREG(found.st_mode) and not ours:
        with contextlib.suppress(ValueError):
            ours = blockfile.read_header(left.fd, name).identity == header.identity
    if stat.S_ISREG(found.st_mode) and ours and left.names(name):
        with contextlib.suppress(OSError):
            os.unlink(name)


def sync_directory(path: Path) -> None:
    """Make the name of a file durable, which may be a link to it."""
    fd = open_high(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _name(path: Path, old: Descriptor, header: Header) -> Path:
    """Name the file beside another: no two files in a folder have the same inode."""
    inode = os.fstat(old.fd).st_ino
    return path.with_name(f".pagemove-{header.identity:016x}-{inode:x}.compact")


def _take_permissions(old: int, fresh: int) -> None:
    """Copy owner, mode and attributes of another file to a file; OSError if not permitted."""
    was, found = os.fstat(old), os.fstat(fresh)
    if (was.st_uid, was.st_gid) != (found.st_uid, found.st_gid):
        os.fchown(fresh, was.st_uid, was.st_gid)
    theirs = _attributes(old)
    # The folder may have a default one, which the mode would bring to life.
    if _ACL not in theirs and _ACL in _attributes(fresh):
        os.removexattr(fresh, _ACL)
    os.fchmod(fresh, stat.S_IMODE(was.st_mode))
    for name, value in theirs.items():
        if _attributes(fresh).get(name) != value:
            os.setxattr(fresh, name, value)


def _attributes(fd: int) -> dict[str, bytes]:
    """Return the access control list and the attributes that users have set."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {
        name: os.getxattr(fd, name) for name in names if name == _ACL or name.startswith("user.")
    }

"""How long an open file or device is, and why what cannot be paged is refused."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# What cannot be read at any offset, by its kind.
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}


def length_of(fd: int, path: Path) -> int:
    """Return the length of an open file; refuse what cannot be paged, saying why."""
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it", str(path))
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind:
        raise ValueError(
            f"{path} is {kind}, which cannot be read at any offset: copy what comes out of it into "
            "a file, and open that"
        )
    nbytes = found.st_size
    if stat.S_ISBLK(found.st_mode):
        nbytes = os.lseek(fd, 0, os.SEEK_END)
    if nbytes and _has_byte(fd, nbytes - 1):
        return nbytes
    if _has_byte(fd, 0):
        raise ValueError(
            f"{path} does not have the length it claims, as files of procfs and sysfs do not: copy "
            "it into a file, and open that"
        )
    raise ValueError(f"{path} is empty: there is nothing to read or to page")


def _has_byte(fd: int, offset: int) -> bool:
    """Return whether there is a byte to be read; an unreadable one is there too."""
    try:
        return bool(os.pread(fd, 1, offset))
    except OSError:
        return True

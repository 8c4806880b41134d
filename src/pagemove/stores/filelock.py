"""One writer for a file: a lock of fcntl(2) that goes with the open file, and who has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import warnings
from pathlib import Path

from pagemove.stores.descriptors import Descriptor, shown

# l_type, l_whence, l_start, l_len, l_pid: the whole file; and no process, as the kernel wants it.
_WHOLE, _NOTHING = (
    struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 0, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)
)
#: Of what there may be enough the next time, so that it does not mean that there are no locks.
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
# Devices of file systems without locks that a warning has named.
_told: set[int] = set()


class FileLock:
    """The lock of a file's only writer, until the object or the process is gone.

    It has an open file of its own: so it does not go with other descriptors of the file, and two in
    one process exclude each other. A forked child does not have it.

    Parameters
    ----------
    fd : int
        The file, open.
    path : Path
        Of it, for messages.

    Raises
    ------
    BlockingIOError
        Another process or region holds it; the message says which.
    OSError
        There is no descriptor, or no memory, for it.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._file: Descriptor | None = None
        try:
            self._file = opened_anew(fd, path)
            fcntl.fcntl(self._file.fd, fcntl.F_OFD_SETLK, _WHOLE)
            self._file.unlock = lambda fd: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NOTHING)
        except OSError as error:
            if self._file is not None and error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(
                    errno.EAGAIN,
                    f"it is written by {_holder(fd)}: close it there first, or open it with "
                    "lock=False if no two writers write into one block",
                    shown(path),
                ) from None
            if error.errno in SHORT_OF:
                raise
            _warn(fd, path, error)

    def close(self) -> None:
        """Release it. Twice is fine."""
        if self._file is not None:
            self._file.close()


def opened_anew(fd: int, path: Path) -> Descriptor:
    """Open the file of a descriptor once more, whatever its path leads to by now."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return Descriptor(f"/proc/self/fd/{fd}", flags)
    except OSError as error:
        if error.errno in SHORT_OF:
            raise
    # Without /proc.
    file = Descriptor(path, flags)
    if not os.path.samestat(os.fstat(file.fd), os.fstat(fd)):
        raise OSError(errno.ESTALE, "another file has its path by now")
    return file


def _warn(fd: int, path: Path, error: OSError) -> None:
    device = os.fstat(fd).st_dev
    if device in _told:
        return
    _told.add(device)
    warnings.warn(
        f"{shown(path)} cannot be locked ({error.strerror}), so nothing keeps two writers of it "
        "from overwriting each other's changes: see to it that there is one; lock=False says so, "
        "without this warning",
        RuntimeWarning,
        stacklevel=4,
    )


def _holder(fd: int) -> str:
    """Say who has a lock on a file. The kernel names processes for locks of another kind only."""
    found = os.fstat(fd)
    here = f":{found.st_ino} ".encode()
    holders = [int(each.name) for each in Path("/proc").glob("[0-9]*") if _locks(each, here)]
    if os.getpid() in holders:
        return "another store or region of this process"
    if not holders:
        return "a process that cannot be seen from here (of another user, container or machine)"
    return " and ".join(f"process {pid} ({_command(pid)})" for pid in holders)


def _locks(process: Path, here: bytes) -> bool:
    """Return whether a process has a descriptor with a lock on a file, as fdinfo shows it."""
    try:
        descriptors = os.listdir(process / "fdinfo")
    except OSError:
        return False
    for name in descriptors:
        with contextlib.suppress(OSError):
            for line in (process / "fdinfo" / name).read_bytes().splitlines():
                if line.startswith(b"lock:") and here in line and b"FLOCK" not in line:
                    return True
    return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").strip()
    except OSError:
        return "which has ended since"

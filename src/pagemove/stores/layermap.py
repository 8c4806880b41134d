"""Which blocks are on top: a bitmap in memory, and in a file that tells the truth after a crash.

The file has two bitmaps. The first is written at once: a process that dies leaves it right. But
after a crash of the machine it may say of a block that it is on top whose bytes never got to the
disk. So the second is written when the top was flushed, and is what counts once the machine was
started anew, which the boot's own name tells.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from pathlib import Path

from pagemove.descriptors import keep

_MAGIC = b"pagemove layers\n"
# Magic, nbytes, block size, name of the boot.
_HEADER = struct.Struct("<16sQQ36s")
_START = 4096
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class LayerMap:
    """Which blocks are on top.

    Parameters
    ----------
    nbytes, block_size : int
        Of the store.
    path : Path, optional
        Of the file, which is made if it is not there. One map has it open at a time.
    bits : bytes, optional
        What it is to begin with, without a file.

    Raises
    ------
    BlockingIOError
        Another store has the file open.
    ValueError
        It is the file of another store.
    """

    def __init__(
        self, nbytes: int, block_size: int, path: Path | None = None, bits: bytes | None = None
    ) -> None:
        blocks = -(-nbytes // block_size)
        self._bits = bytearray(bits or bytes(-(-blocks // 8)))
        self._lock = threading.Lock()
        self._path = path
        self._fd = -1
        if path is not None:
            self._open(path, nbytes, block_size)

    def __contains__(self, block: int) -> bool:
        return bool(self._bits[block >> 3] & 1 << (block & 7))

    @property
    def bits(self) -> bytes:
        """All of it."""
        return bytes(self._bits)

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def add(self, first: int, last: int) -> None:
        """Note that blocks are on top, whose bytes are there."""
        with self._lock:
            for block in range(first, last + 1):
                self._bits[block >> 3] |= 1 << (block & 7)
            if self._fd >= 0:
                some = slice(first >> 3, (last >> 3) + 1)
                _write(self._fd, self._bits[some], _START + (first >> 3))

    def settle(self, bits: bytes) -> None:
        """Make durable what was on top before the top was flushed."""
        if self._fd >= 0:
            _write(self._fd, bits, _START + len(bits))
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file. Twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self, path: Path, nbytes: int, block_size: int) -> None:
        self._fd = keep(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        try:
            self._load(self._fd, path, nbytes, block_size)
        except BaseException:
            self.close()
            raise

    def _load(self, fd: int, path: Path, nbytes: int, block_size: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                errno.EAGAIN, "is in use by another store: close that one first", str(path)
            ) from None
        boot = _BOOT.read_bytes()[:36]
        head, size = os.pread(fd, _HEADER.size, 0), len(self._bits)
        # Zeros: whoever made it crashed before it was used.
        if not head.strip(b"\0"):
            os.ftruncate(fd, _START + 2 * size)
        elif len(head) < _HEADER.size or _HEADER.unpack(head)[:3] != (_MAGIC, nbytes, block_size):
            raise ValueError(
                f"{path} is not the map of such a store ({nbytes} bytes, blocks of {block_size}): "
                "name another file"
            )
        else:
            known = _HEADER.unpack(head)[3] == boot
            self._bits[:] = os.pread(fd, size, _START if known else _START + size)
            if known:
                return
        _write(fd, self._bits, _START)
        os.fdatasync(fd)
        _write(fd, _HEADER.pack(_MAGIC, nbytes, block_size, boot), 0)
        os.fsync(fd)


def _write(fd: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        put = os.pwrite(fd, view, offset)
        view, offset = view[put:], offset + put

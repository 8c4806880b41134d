"""Which blocks are on top: a bitmap in memory, and in a file that is right after a crash.

The file has two bitmaps. The first is written at once: a process that dies leaves it right. But
after a crash of the machine it may say of a block that it is on top whose bytes never got to the
disk. So the second is written when the top was flushed, and is what counts once the machine was
started anew, which the boot's own id shows.

Each sector has a checksum: a bit that has changed by itself would show what is on the other layer.
The checksum covers the number of the sector too, so that the bytes of one in the place of another
are not taken for right. In files of the format before, which are used on as they are, it does not.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import zlib
from pathlib import Path

import numpy as np

from pagemove.stores.blockfile import BOOT, boot_name, write_all
from pagemove.stores.descriptors import Descriptor, lock_whole, shown
from pagemove.stores.replacement import sync_directory

_MAGIC = b"pagemove layers3"
#: Of files whose checksums do not cover the number of the sector.
_EARLIER_MAGIC = b"pagemove layers2"
# Magic, nbytes, block size, name of the boot; checksum.
_HEADER = struct.Struct("<16sQQ36sI")
_START = 4096
_CHECKSUM = struct.Struct("<I")
# Written as one by every disk.
_SECTOR = 512
_SHARE = _SECTOR - _CHECKSUM.size
_BOOT = BOOT
# In place of the name of a boot: made, and not yet complete.
_UNFINISHED = bytes(36)


class LayerMap:
    """Which blocks are on top.

    Parameters
    ----------
    nbytes, block_size : int
        Of the store.
    path : Path, optional
        Of the file, which is made if it is not there, or empty. One map has it open at a time.
    bits : bytes, optional
        What it is to begin with, without a file.

    Raises
    ------
    BlockingIOError
        Another store has the file open.
    ValueError
        It is the file of another store, or damaged. It is left as it is.
    """

    def __init__(
        self, nbytes: int, block_size: int, path: Path | None = None, bits: bytes | None = None
    ) -> None:
        blocks = -(-nbytes // block_size)
        self._bits = bytearray(bits or bytes(-(-blocks // 8)))
        self._sectors = -(-len(self._bits) // _SHARE)
        self._lock = threading.Lock()
        self._shape = (nbytes, block_size)
        self._path = path
        self._magic = _MAGIC
        self._unsure = False  # whether a sync has failed
        self._file: Descriptor | None = None
        if path is not None:
            self._open(path)

    def __contains__(self, block: int) -> bool:
        return bool(self._bits[block >> 3] & 1 << (block & 7))

    @property
    def bits(self) -> bytes:
        """The bitmap as it is."""
        # Without the lock, which in a forked child may be held by a thread that is not there. Half
        # of what is being added is right too: bytes are on top before they are said to be.
        return bytes(self._bits)

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def add(self, first: int, last: int) -> None:
        """Note that blocks are on top, whose bytes are there."""
        with self._lock:
            for block in range(first, last + 1):
                self._bits[block >> 3] |= 1 << (block & 7)
            self._write(self._bits, (first >> 3) // _SHARE, (last >> 3) // _SHARE + 1)

    def remove(self, first: int, last: int) -> None:
        """Note that blocks are not on top."""
        with self._lock:
            for block in range(first, last + 1):
                self._bits[block >> 3] &= ~(1 << (block & 7))
            self._write(self._bits, (first >> 3) // _SHARE, (last >> 3) // _SHARE + 1)

    def clear(self, bits: bytes) -> None:
        """Remove the blocks of a bitmap."""
        with self._lock:
            mine = np.frombuffer(self._bits, np.uint8)
            mine &= ~np.frombuffer(bits, np.uint8)
            self._write(self._bits, 0, self._sectors)

    def settle(self, bits: bytes) -> None:
        """Make durable what was on top before the top was flushed. By one thread at a time."""
        with self._lock:
            file = self._file
            if file is None:
                return
            if self._path is None or not file.names(self._path):
                raise OSError(errno.ESTALE, "was replaced, moved or removed since it was opened")
            if self._unsure:
                # What a sync that failed was to write may be lost, whichever it was.
                self._write_head(boot_name(_BOOT))
                self._write(self._bits, 0, self._sectors)
            self._write(bits, 0, self._sectors, self._sectors)
            self._unsure = True
        os.fdatasync(file.fd)
        self._unsure = False

    def close(self) -> None:
        """Close the file. Twice is fine. Not while another thread flushes."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def _open(self, path: Path) -> None:
        file = Descriptor(path, os.O_RDWR | os.O_CREAT)
        try:
            lock_whole(file)
        except BlockingIOError:
            raise BlockingIOError(
                errno.EAGAIN, "is in use by another store: close that one first", shown(path)
            ) from None
        if not stat.S_ISREG(os.fstat(file.fd).st_mode):
            raise ValueError(f"{shown(path)} is not a regular file: name one, or a new one")
        self._file = file
        try:
            self._load(file.fd, path)
        except BaseException:
            self._file = None
            raise

    def _load(self, fd: int, path: Path) -> None:
        boot = boot_name(_BOOT)
        if os.fstat(fd).st_size == 0:
            self._write_head(_UNFINISHED)
            sync_directory(path)
        last = self._boot_in(os.pread(fd, _HEADER.size, 0), path)
        if last == _UNFINISHED:
            self._write(self._bits, 0, self._sectors, self._sectors)
        else:
            self._bits[:] = self._read(fd, path, 0 if last == boot else self._sectors)
            if last == boot:
                return
        self._write(self._bits, 0, self._sectors)
        os.fdatasync(fd)
        self._write_head(boot)
        os.fsync(fd)

    def _boot_in(self, head: bytes, path: Path) -> bytes:
        """Check the header; return the name of the boot in it."""
        magic, *shape = _HEADER.unpack(head)[:3] if len(head) == _HEADER.size else (b"",)
        if magic not in (_MAGIC, _EARLIER_MAGIC) or tuple(shape) != self._shape:
            raise ValueError(
                f"{shown(path)} is not the map of such a store ({self._shape[0]} bytes, blocks of "
                f"{self._shape[1]}): name another file"
            )
        boot, checksum = _HEADER.unpack(head)[3:]
        if zlib.crc32(head[: -_CHECKSUM.size]) != checksum:
            raise _damaged(path)
        self._magic = magic
        return bytes(boot)

    def _read(self, fd: int, path: Path, first: int) -> bytes:
        data = os.pread(fd, self._sectors * _SECTOR, _START + first * _SECTOR)
        sectors = [data[at : at + _SECTOR] for at in range(0, len(data), _SECTOR)]
        if len(data) != self._sectors * _SECTOR or any(
            each != self._sector(each, number) for number, each in enumerate(sectors, first)
        ):
            raise _damaged(path)
        return b"".join(each[:_SHARE] for each in sectors)[: len(self._bits)]

    def _write(self, bits: bytes | bytearray, first: int, end: int, behind: int = 0) -> None:
        """Write sectors of a bitmap, so many sectors further on."""
        if self._file is None:
            return
        some = bytes(bits[first * _SHARE : end * _SHARE])
        shares = (some[at : at + _SHARE] for at in range(0, len(some), _SHARE))
        sectors = (self._sector(share, n) for n, share in enumerate(shares, behind + first))
        write_all(self._file.fd, b"".join(sectors), _START + (behind + first) * _SECTOR)

    def _sector(self, share: bytes, number: int) -> bytes:
        """Return a sector: what it holds, and the checksum of that and of where it is."""
        share = share[:_SHARE].ljust(_SHARE, b"\0")
        before = number if self._magic == _MAGIC else 0
        return share + _CHECKSUM.pack(zlib.crc32(share, before))

    def _write_head(self, boot: bytes) -> None:
        assert self._file is not None
        fields = _HEADER.pack(self._magic, *self._shape, boot, 0)[: -_CHECKSUM.size]
        write_all(self._file.fd, fields + _CHECKSUM.pack(zlib.crc32(fields)), 0)


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{shown(path)} is damaged (its checksums are wrong): restore it from a copy")


def blocks_of(bits: bytes) -> list[int]:
    """Return the blocks of a bitmap."""
    found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    blocks: list[int] = np.flatnonzero(found).tolist()
    return blocks

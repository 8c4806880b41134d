"""A file that blocks of any length are appended to: what `CompressedStore` keeps on disk.

A header, then records, each a block's number and its bytes; the last record of a block counts, and
an empty one means that the block is zeros again. Which record that is stands in memory, and is read
from the file when it is opened. When more than half of the file is dead, what lives is copied into
a new file that takes its place.

A crash may tear what was written since the last flush, and only that: the header says how long the
file was at a flush (written after it, so it may say less). A record that is damaged before that
place is an error; behind it, it is where the file ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

from pagemove.descriptors import keep

_MAGIC = b"pagemove blocks\n"
_VERSION = 1
# Magic, version, block size, nbytes; then, elsewhere, so that each is one write: sure length.
_HEADER = struct.Struct("<16sIIQ")
_SURE = struct.Struct("<QI")
_SURE_AT = 512
_START = 4096
# Block, sequence number, length, checksum of the bytes, checksum of the fields before.
_RECORD = struct.Struct("<QQIII")
#: Dead bytes that a file may have whatever else is in it.
SLACK = 4 << 20


class Layout(NamedTuple):
    """What a file's header says of the store in it."""

    nbytes: int
    block_size: int


class _Place(NamedTuple):
    offset: int
    length: int
    checksum: int


class _File:
    """A descriptor that is closed when the last thread that reads from it lets go of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def create(path: Path, layout: Layout) -> None:
    """Make an empty file, unless there is one; FileExistsError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(fd, _HEADER.pack(_MAGIC, _VERSION, layout.block_size, layout.nbytes), 0)
        _write_sure(fd, _START)
        os.ftruncate(fd, _START)
        os.fsync(fd)
        _sync_directory(path)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


def layout_of(path: Path) -> Layout:
    """Read the header of a file; ValueError if it is something else."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _layout(fd, path)
    finally:
        os.close(fd)


class BlockLog:
    """An open file of blocks. One process has it open at a time, with any number of threads.

    Raises
    ------
    BlockingIOError
        Another process, or another store of this one, has it open.
    ValueError
        It is not such a file, or a part of it that was durable is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: _File | None = _open_locked(path)
        try:
            _layout(self._file.fd, path)
            self._index, self._end, self._sequence = _scan(self._file.fd, path)
            # What is torn must not be taken for the beginning of a later record.
            os.ftruncate(self._file.fd, self._end)
        except BaseException:
            self._file = None
            raise
        self._live = sum(_RECORD.size + place.length for place in self._index.values())
        self._tolerated = SLACK
        self.compactions = 0

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that are there."""
        with self._lock:
            return self._live - _RECORD.size * len(self._index)

    @property
    def file_nbytes(self) -> int:
        """Length of the file."""
        return self._end

    def get(self, block: int) -> bytes | None:
        """Give the bytes of a block; None if it has none. OSError if they are damaged."""
        with self._lock:
            place, file = self._index.get(block), self._usable()
        if place is None:
            return None
        data = os.pread(file.fd, place.length, place.offset)
        if len(data) != place.length or zlib.crc32(data) != place.checksum:
            raise OSError(
                errno.EIO,
                f"{self._path}: block {block} is damaged (its checksum is wrong); restore the file "
                "from a copy",
            )
        return data

    def put(self, block: int, data: bytes | None) -> None:
        """Append the bytes of a block, or that it has none."""
        checksum = zlib.crc32(data or b"")
        with self._lock:
            if data is None and block not in self._index:
                return
            self._append(block, data or b"", checksum)
            if self._dead > max(self._live, self._tolerated):
                self._try_to_compact()

    def sync(self) -> None:
        """Return when all that was put is durable."""
        with self._lock:
            file, end = self._usable(), self._end
        os.fdatasync(file.fd)
        with self._lock:
            # Not if the file was replaced meanwhile: that one says more already.
            if file is self._file:
                _write_sure(file.fd, end)

    def close(self) -> None:
        """Let go of the file. What was not synced is there, and survives all but a crash."""
        with self._lock:
            self._file = None

    def _usable(self) -> _File:
        if self._file is None:
            raise ValueError(f"{self._path} was closed")
        return self._file

    def _append(self, block: int, data: bytes, checksum: int) -> None:
        head = _record(block, self._sequence, len(data), checksum)
        fd = self._usable().fd
        try:
            _write(fd, head + data, self._end)
        except OSError:
            # A part of a record must not stand behind the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._end)
            raise
        self._enter(block, _Place(self._end + _RECORD.size, len(data), checksum))
        self._end += _RECORD.size + len(data)
        self._sequence += 1

    def _enter(self, block: int, place: _Place) -> None:
        before = self._index.pop(block, None)
        if before is not None:
            self._live -= _RECORD.size + before.length
        if place.length:
            self._index[block] = place
            self._live += _RECORD.size + place.length

    @property
    def _dead(self) -> int:
        return self._end - _START - self._live

    def _try_to_compact(self) -> None:
        """Compact, if there is room for another file; else when twice as much is dead."""
        fresh = self._path.with_name(self._path.name + ".compact")
        fresh.unlink(missing_ok=True)
        try:
            self._compact(fresh)
        except OSError:
            fresh.unlink(missing_ok=True)
            self._tolerated = 2 * self._dead
        else:
            self._tolerated = SLACK

    def _compact(self, fresh: Path) -> None:
        """Copy what lives into a new file and put it into the place of the old one."""
        old = self._usable()
        create(fresh, _layout(old.fd, self._path))
        file = _open_locked(fresh)
        os.fchmod(file.fd, stat.S_IMODE(os.fstat(old.fd).st_mode))
        index: dict[int, _Place] = {}
        end = _START
        # In the order of the blocks: the next to be read is the next in the file.
        for sequence, block in enumerate(sorted(self._index)):
            place = self._index[block]
            data = os.pread(old.fd, place.length, place.offset)
            # Damage is copied with the checksum that tells of it.
            _write(file.fd, _record(block, sequence, len(data), place.checksum) + data, end)
            index[block] = place._replace(offset=end + _RECORD.size)
            end += _RECORD.size + len(data)
        os.fdatasync(file.fd)
        _write_sure(file.fd, end)
        fresh.rename(self._path)
        _sync_directory(self._path)
        self._file, self._index, self._end = file, index, end
        self._live = end - _START
        self._sequence = len(index)
        self.compactions += 1


def _record(block: int, sequence: int, length: int, checksum: int) -> bytes:
    fields = struct.pack("<QQII", block, sequence, length, checksum)
    return fields + struct.pack("<I", zlib.crc32(fields))


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        put = os.pwrite(fd, view, offset)
        view, offset = view[put:], offset + put


def _write_sure(fd: int, length: int) -> None:
    _write(fd, _SURE.pack(length, zlib.crc32(length.to_bytes(8, "little"))), _SURE_AT)


def _sure(fd: int) -> int:
    """Read up to where the file was durable once; where that is torn, it is at its beginning."""
    data = os.pread(fd, _SURE.size, _SURE_AT)
    if len(data) == _SURE.size:
        length, checksum = _SURE.unpack(data)
        if checksum == zlib.crc32(data[:8]):
            return int(length)
    return _START


def _layout(fd: int, path: Path) -> Layout:
    data = os.pread(fd, _HEADER.size, 0)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise ValueError(f"{path} is not a file of compressed blocks: name a new one")
    _, version, block_size, nbytes = _HEADER.unpack(data)
    if version != _VERSION:
        raise ValueError(f"{path} was made by another version of pagemove (format {version})")
    return Layout(nbytes, block_size)


def _scan(fd: int, path: Path) -> tuple[dict[int, _Place], int, int]:
    """Read which record of each block counts, where the records end, and how many there are."""
    sure, end, size = _sure(fd), _START, os.fstat(fd).st_size
    index: dict[int, _Place] = {}
    sequence = 0
    while end < size:
        head = os.pread(fd, _RECORD.size, end)
        whole = len(head) == _RECORD.size and zlib.crc32(head[:-4]) == int.from_bytes(
            head[-4:], "little"
        )
        block, number, length, checksum, _ = _RECORD.unpack(head.ljust(_RECORD.size, b"\0"))
        whole = whole and number == sequence
        if whole and end >= sure:
            whole = zlib.crc32(os.pread(fd, length, end + _RECORD.size)) == checksum
        if not whole:
            break
        index.pop(block, None)
        if length:
            index[block] = _Place(end + _RECORD.size, length, checksum)
        end += _RECORD.size + length
        sequence += 1
    if end < sure:
        raise ValueError(
            f"{path} is damaged at byte {end}, in a part that was durable: restore it from a copy"
        )
    return index, end, sequence


def _open_locked(path: Path) -> _File:
    """Open a file that no other store has open."""
    while True:
        file = _File(keep(os.open(path, os.O_RDWR | os.O_CLOEXEC)))
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                errno.EAGAIN,
                "is in use by another store, of this process or of another: close that one first",
                str(path),
            ) from None
        # Whoever had it may have put another file into its place since it was opened.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fd), path.stat()):
                return file


def _sync_directory(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

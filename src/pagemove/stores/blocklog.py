"""A file that blocks of any length are appended to: what `CompressedStore` keeps on disk.

The last record of a block counts, and an empty one means that the block is zeros again. Which
record that is stands in memory, and is read from the file when it is opened (`blockfile`). When
more than half of the file is dead, what lives is copied into a new file that takes its place
(`replacement`).

A sync that failed may have lost anything that was written since the last, and asking again would
succeed. What was lost cannot be written again where it was: a later record would be behind damage.
So after a failure the next sync copies what lives into a new file, every block checked.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path
from typing import NamedTuple

from pagemove.stores import blockfile, replacement
from pagemove.stores.blockfile import RECORD_NBYTES, START, Header, Layout, Place
from pagemove.stores.descriptors import Descriptor, lock_whole, open_high, shown

#: Dead bytes that a file may have whatever else is in it.
SLACK = 4 << 20

_log = logging.getLogger(__name__)


def create(path: Path, layout: Layout) -> None:
    """Make a file without blocks. An empty one that is there will do; else FileExistsError."""
    path = Path(os.path.realpath(path))
    try:
        file = Descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        # A device says 0 too.
        if path.stat().st_size or not path.is_file():
            raise
        file = open_locked(path)
        if os.fstat(file.fd).st_size:
            raise
        blockfile.write_header(file.fd, Header.new(layout))
        os.fsync(file.fd)
        return
    try:
        blockfile.write_header(file.fd, Header.new(layout))
        os.fsync(file.fd)
        replacement.sync_directory(path)
    except BaseException:
        if file.names(path):
            path.unlink()
        raise


def layout_of(path: Path) -> Layout:
    """Read the header of a file; ValueError if it is something else."""
    fd = open_high(path, os.O_RDONLY)
    try:
        return blockfile.read_header(fd, path).layout
    finally:
        os.close(fd)


class Doubt(NamedTuple):
    """What a file held when a sync of it had failed."""

    generation: int
    end: int


class BlockLog:
    """An open file of blocks. One process has it open at a time, with any number of threads.

    Parameters
    ----------
    path : Path
        The file.
    doubt : Doubt, optional
        Of the object that had it open before: it may have lost what that had written.

    Raises
    ------
    BlockingIOError
        Another process, or another store of this one, has it open.
    ValueError
        It is not such a file, or a part of it that counts is damaged.
    OSError
        It has lost what it held.
    """

    def __init__(self, path: Path, doubt: Doubt | None = None) -> None:
        self._named = path
        # Where links lead: the file is replaced there, and the links stay.
        self._path = Path(os.path.realpath(path))
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._file: Descriptor | None = open_locked(self._path)
        try:
            self._header = blockfile.read_header(self._file.fd, path)
            found = blockfile.scan(self._file.fd, path, self._header)
            # Another generation was checked when it was made.
            same = doubt is not None and doubt.generation == self._header.generation
            if doubt is not None and same and found.end < doubt.end:
                raise OSError(
                    errno.EIO,
                    f"{shown(path)} has lost what was written before a flush that failed: restore "
                    "it from a copy, or make a new store of it to use what is left",
                )
            # What is torn must not be taken for the beginning of a later record.
            os.ftruncate(self._file.fd, found.end)
            blockfile.note_use(self._file.fd, self._header)
        except BaseException:
            self._file = None
            raise
        self._index, self._end, self._sequence, self._chain = found
        self._live = _live(self._index)
        self._tolerated = SLACK
        self._ragged = False  # whether a part of a record is behind the end
        self._unsure = same  # whether a sync has failed
        self._told = False
        self.compactions = 0
        replacement.discard(self._path, self._file, self._header)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def layout(self) -> Layout:
        """What the header says."""
        return self._header.layout

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that are there."""
        with self._lock:
            return self._live - RECORD_NBYTES * len(self._index)

    @property
    def file_nbytes(self) -> int:
        """Length of the file."""
        return self._end

    @property
    def doubt(self) -> Doubt | None:
        """What is to be known where the file is opened next; None if it is sound."""
        # Without the lock, which in a forked child may be held forever.
        return Doubt(self._header.generation, self._end) if self._unsure else None

    def get(self, block: int) -> bytes | None:
        """Return the bytes of a block; None if it has none. OSError if they are damaged."""
        with self._lock:
            place, file, header = self._index.get(block), self._usable(), self._header
        return None if place is None else self._read(file, header, block, place)

    def put(self, block: int, data: bytes | None) -> None:
        """Append the bytes of a block, or that it has none."""
        with self._lock:
            if data is None and block not in self._index:
                return
            self._append(block, data or b"")
            if self._dead > max(self._live, self._tolerated):
                self._try_to_compact()

    def sync(self) -> None:
        """Return when all that was put is durable."""
        # One at a time: the kernel reports a failure once, and the next fdatasync succeeds.
        with self._syncing:
            with self._lock:
                self._check_named()
                file, end, chain = self._usable(), self._end, self._chain
                unsure = self._unsure
            if not unsure:
                try:
                    os.fdatasync(file.fd)
                except BaseException:
                    with self._lock:
                        self._unsure = True
                    raise
            with self._lock:
                if self._unsure:
                    self._compact()
                # Not if the file was replaced meanwhile: that one says more already.
                elif file is self._file:
                    blockfile.write_mark(file.fd, self._header, end, chain)

    def close(self) -> None:
        """Drop the file. What was not synced is there, and survives all but a crash."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.release()

    def _usable(self) -> Descriptor:
        if self._file is None:
            raise ValueError(f"{shown(self._path)} was closed")
        return self._file

    def _read(self, file: Descriptor, header: Header, block: int, place: Place) -> bytes:
        data = os.pread(file.fd, place.length, place.offset)
        checksum = blockfile.checksum_of(header, block, place.sequence, data)
        if len(data) != place.length or checksum != place.checksum:
            raise OSError(
                errno.EIO,
                f"{shown(self._path)}: block {block} is damaged (its checksum is wrong); restore "
                "the file from a copy",
            )
        return data

    def _append(self, block: int, data: bytes) -> None:
        fd = self._usable().fd
        if self._ragged:
            os.ftruncate(fd, self._end)
            self._ragged = False
        place = Place(
            self._end + RECORD_NBYTES,
            len(data),
            blockfile.checksum_of(self._header, block, self._sequence, data),
            self._sequence,
        )
        head = blockfile.record_head(block, place, self._chain)
        self._ragged = True
        try:
            blockfile.write_all(fd, head + data, self._end)
        except OSError:
            # A part of a record must not stand behind the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._end)
                self._ragged = False
            raise
        self._ragged = False
        self._end += RECORD_NBYTES + len(data)
        self._sequence += 1
        self._chain = blockfile.chain_of(head)
        self._enter(block, place)

    def _enter(self, block: int, place: Place) -> None:
        before = self._index.pop(block, None)
        if before is not None:
            self._live -= RECORD_NBYTES + before.length
        if place.length:
            self._index[block] = place
            self._live += RECORD_NBYTES + place.length

    @property
    def _dead(self) -> int:
        return self._end - START - self._live

    def _check_named(self) -> None:
        """Raise if the path leads to another file by now, or to none."""
        if not self._usable().names(self._named):
            raise OSError(
                errno.ESTALE,
                f"{shown(self._named)} was replaced, moved or removed since it was opened, and "
                "what is written goes to the old file: put that back, or close the store and "
                "write into a new one",
            )

    def _try_to_compact(self) -> None:
        """Compact if that can be done; if not, when twice as much is dead."""
        try:
            self._compact()
        except OSError as error:
            self._tolerated = 2 * self._dead
            if not self._told:
                self._told = True
                _log.warning("cannot compact %s, so it grows: %s", shown(self._path), str(error))
        else:
            self._tolerated = SLACK

    def _compact(self) -> None:
        """Copy what lives into a new file, and put that into the place of the old one.

        OSError: the old file stays in use, as it was; or the new one is in its place, and whether
        that is durable is not known.
        """
        self._check_named()
        old = self._usable()
        header = self._header._replace(generation=self._header.generation + 1)
        with replacement.beside(self._path, old, header) as fresh:
            found = self._copy(old, fresh.file, header)
            os.fsync(fresh.file.fd)
            blockfile.write_mark(fresh.file.fd, header, found.end, found.chain)
            self._check_named()
            try:
                fresh.take_place()
            finally:
                # Also if it was interrupted: what counts is which file the name leads to.
                if fresh.placed:
                    self._file, self._header, self._unsure = fresh.file, header, True
                    self._index, self._end, self._sequence, self._chain = found
                    self._live, self._ragged = _live(found.places), False
        replacement.sync_directory(self._path)
        self._unsure = False
        self.compactions += 1

    def _copy(self, old: Descriptor, fresh: Descriptor, header: Header) -> blockfile.Scan:
        """Copy the blocks that live, checking each; return where they are then."""
        index: dict[int, Place] = {}
        end, chain = START, header.seed
        # In the order of the blocks: the next to be read is the next in the file.
        for sequence, block in enumerate(sorted(self._index)):
            data = self._read(old, self._header, block, self._index[block])
            checksum = blockfile.checksum_of(header, block, sequence, data)
            place = Place(end + RECORD_NBYTES, len(data), checksum, sequence)
            head = blockfile.record_head(block, place, chain)
            blockfile.write_all(fresh.fd, head + data, end)
            index[block] = place
            end, chain = end + len(head) + len(data), blockfile.chain_of(head)
        return blockfile.Scan(index, end, len(index), chain)


def _live(index: dict[int, Place]) -> int:
    return sum(RECORD_NBYTES + place.length for place in index.values())


def open_locked(path: Path) -> Descriptor:
    """Open a file that no other store has open."""
    while True:
        file = Descriptor(path, os.O_RDWR)
        try:
            lock_whole(file)
        except BlockingIOError:
            raise BlockingIOError(
                errno.EAGAIN,
                "is in use by another store, of this process or of another: close that one first",
                shown(path),
            ) from None
        # The last holder may have replaced the file since it was opened.
        if file.names(path):
            return file

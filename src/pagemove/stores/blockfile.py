"""How a file of compressed blocks is laid out, and how it is checked: `blocklog` uses it.

A page with the header and, twice, the *mark*, each with a checksum; then records, each the fields
of a block and its bytes. The checksum of the bytes covers the file's identity, the block's number
and a sequence number too, so that bytes of another place or of an older version are not taken for
right. That of the fields covers that of the record before: a record is valid only behind the one
that it was written behind.

The mark says up to where the file was durable once (it is written afterwards, so it may say less),
what the checksum there is, and in which boot of the machine the file was used last. A record that
is damaged before that place is an error. Behind it, a crash of the machine may have left anything,
and the file ends at the first record that is not whole; without a crash, only the end of the file
can be torn, by a process that was killed.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from pagemove.stores.descriptors import shown
from pagemove.stores.ranges import LARGEST_BLOCK, SMALLEST_BLOCK

_MAGIC = b"pagemove blocks\n"
_VERSION = 2
# Magic, version, block size, nbytes: as in version 1; then identity, generation, flags, checksum.
_HEADER = struct.Struct("<16sIIQQIII")
# Length, checksum of the last record's fields, boot; checksum.
_MARK = struct.Struct("<QI36sI")
# In sectors of their own: a write that is torn leaves the other.
_MARKS_AT = (1024, 2048)
#: Where the records begin.
START = 4096
# Block, sequence number, length, checksum of the bytes; checksum of the fields.
_RECORD = struct.Struct("<QQIII")
RECORD_NBYTES = _RECORD.size
_CHECKSUM = struct.Struct("<I")
#: Where the kernel says which boot of the machine this is.
BOOT = Path("/proc/sys/kernel/random/boot_id")
_LONGEST = 2**63 - 1


class Layout(NamedTuple):
    """What a file's header says of the store in it."""

    nbytes: int
    block_size: int


class Header(NamedTuple):
    """What a file's header says.

    Attributes
    ----------
    layout : Layout
        Of the store.
    identity : int
        Of the store, drawn when it was made.
    generation : int
        How many times the file was replaced by a compacted one.
    """

    layout: Layout
    identity: int
    generation: int

    @classmethod
    def new(cls, layout: Layout) -> Header:
        """Make the header of a new store."""
        return cls(layout, int.from_bytes(os.urandom(8), "little"), 0)

    def packed(self) -> bytes:
        """Return the bytes of the header."""
        fields = _HEADER.pack(
            _MAGIC,
            _VERSION,
            self.layout.block_size,
            self.layout.nbytes,
            self.identity,
            self.generation & 0xFFFFFFFF,
            0,
            0,
        )[: -_CHECKSUM.size]
        return fields + _CHECKSUM.pack(zlib.crc32(fields))

    @property
    def seed(self) -> int:
        """What every checksum in the file begins with."""
        return zlib.crc32(self.packed())


class Place(NamedTuple):
    """Where the bytes of a block are, and what they have to be."""

    offset: int
    length: int
    checksum: int
    sequence: int


class Scan(NamedTuple):
    """What the records say: the places of blocks, and what the next record has to continue."""

    places: dict[int, Place]
    end: int
    sequence: int
    chain: int


class _Mark(NamedTuple):
    length: int
    chain: int
    boot: bytes


def checksum_of(header: Header, block: int, sequence: int, data: bytes) -> int:
    """Compute the checksum of a block's bytes."""
    return zlib.crc32(data, zlib.crc32(struct.pack("<QQ", block, sequence), header.seed))


def record_head(block: int, place: Place, chain: int) -> bytes:
    """Return what stands before the bytes of a block. Its last four bytes are the next chain."""
    fields = struct.pack("<QQII", block, place.sequence, place.length, place.checksum)
    return fields + _CHECKSUM.pack(zlib.crc32(fields, chain))


def chain_of(head: bytes) -> int:
    """Return what the record after this one continues."""
    return int.from_bytes(head[-_CHECKSUM.size :], "little")


def write_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    """Write all of it, in as many pieces as it takes."""
    view = memoryview(data)
    while view:
        put = os.pwrite(fd, view, offset)
        view, offset = view[put:], offset + put


def write_header(fd: int, header: Header) -> None:
    """Write the header and the marks of a file without records."""
    page = bytearray(START)
    page[: _HEADER.size] = header.packed()
    mark = _packed(header, _Mark(START, header.seed, boot_name()))
    for at in _MARKS_AT:
        page[at : at + len(mark)] = mark
    write_all(fd, page, 0)


def write_mark(fd: int, header: Header, length: int, chain: int) -> None:
    """Note how long the durable part of the file is, and that it was used in this boot."""
    for at in _MARKS_AT:
        write_all(fd, _packed(header, _Mark(length, chain, boot_name())), at)


def note_use(fd: int, header: Header) -> None:
    """Note that the file is used in this boot, and nothing else."""
    marks, boot = _read_marks(fd, header), boot_name()
    if len(marks) < len(_MARKS_AT) or any(mark.boot != boot for mark in marks):
        write_mark(fd, header, max(marks).length, max(marks).chain)


def read_header(fd: int, path: Path) -> Header:
    """Read the header; ValueError if it is not one, or is of no use."""
    data = os.pread(fd, _HEADER.size, 0)
    name = shown(path)
    if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + 4:
        raise ValueError(f"{name} is not a file of compressed blocks: name a new one")
    version = int.from_bytes(data[len(_MAGIC) :][:4], "little")
    if version == 1:
        raise ValueError(
            f"{name} has format 1, which has too few checksums to be trusted: read it with the "
            "version of pagemove that made it, and write what is in it into a new file"
        )
    if len(data) < _HEADER.size or zlib.crc32(data[: -_CHECKSUM.size]) != chain_of(data):
        raise _damaged(path, 0)
    _, version, block_size, nbytes, identity, generation, flags, _ = _HEADER.unpack(data)
    if version != _VERSION or flags:
        raise ValueError(
            f"{name} was made by a later version of pagemove (format {version}, flags {flags:#x}): "
            "open it with that"
        )
    sound = SMALLEST_BLOCK <= block_size <= LARGEST_BLOCK and not block_size & (block_size - 1)
    if not sound or not 0 < nbytes <= _LONGEST:
        raise ValueError(
            f"{name} claims {nbytes} bytes in blocks of {block_size}, which no store has: restore "
            "it from a copy"
        )
    return Header(Layout(nbytes, block_size), identity, generation)


def scan(fd: int, path: Path, header: Header) -> Scan:
    """Read where the blocks are; ValueError where a part that counts is damaged."""
    marks = _read_marks(fd, header)
    if not marks:
        raise _damaged(path, _MARKS_AT[0])
    sure = max(marks)
    crashed = all(mark.boot != boot_name() for mark in marks)
    size = os.fstat(fd).st_size
    index: dict[int, Place] = {}
    end, sequence, chain = START, 0, header.seed
    while end < size:
        head = os.pread(fd, _RECORD.size, end)
        found = _record(head, chain, sequence, header.layout)
        behind = end + _RECORD.size + (found[1].length if found else 0)
        whole = found is not None and behind <= size
        if found and whole and end >= sure.length:
            data = os.pread(fd, found[1].length, end + _RECORD.size)
            whole = checksum_of(header, found[0], sequence, data) == found[1].checksum
        if found is None or not whole:
            if end >= sure.length and (crashed or _may_be_torn(fd, end, header.layout, chain)):
                break
            raise _damaged(path, end)
        block, place = found
        index.pop(block, None)
        if place.length:
            index[block] = place._replace(offset=end + _RECORD.size)
        end, sequence, chain = behind, sequence + 1, chain_of(head)
        if end == sure.length and chain != sure.chain:
            raise _damaged(path, end)
    if end < sure.length:
        raise _damaged(path, end)
    return Scan(index, end, sequence, chain)


def _record(head: bytes, chain: int, sequence: int, layout: Layout) -> tuple[int, Place] | None:
    """Take a record's fields apart; None if they are not what can be there."""
    if len(head) < _RECORD.size or zlib.crc32(head[: -_CHECKSUM.size], chain) != chain_of(head):
        return None
    block, number, length, checksum, _ = _RECORD.unpack(head)
    sound = (
        number == sequence
        and length <= _longest(layout.block_size)
        and block * layout.block_size < layout.nbytes
    )
    return (block, Place(0, length, checksum, number)) if sound else None


def _longest(block_size: int) -> int:
    """Return what a block takes at most: ZSTD_compressBound, and some."""
    return block_size + (block_size >> 7) + 512


def _may_be_torn(fd: int, end: int, layout: Layout, chain: int) -> bool:
    """Return whether a killed process may have left what is at the end of the file.

    It leaves a part of one record. So it was not a whole one that has changed: the file does not
    end where the record does, and no other continues it.
    """
    rest = os.pread(fd, 2 * _longest(layout.block_size), end)
    if len(rest) < _RECORD.size:
        return True
    head = rest[: _RECORD.size]
    length = _RECORD.unpack(head)[2]
    # The length itself may be what has changed.
    given = len(rest) - _RECORD.size
    as_given = head[:16] + _CHECKSUM.pack(given & 0xFFFFFFFF) + head[20:24]
    if given == length or zlib.crc32(as_given, chain) == chain_of(head):
        return False
    chains = {chain_of(head), zlib.crc32(head[: -_CHECKSUM.size], chain)}
    for at in range(_RECORD.size, len(rest) - _RECORD.size + 1):
        fields, stored = rest[at : at + 24], rest[at + 24 : at + 28]
        if any(zlib.crc32(fields, each).to_bytes(4, "little") == stored for each in chains):
            return False
    return True


def _packed(header: Header, mark: _Mark) -> bytes:
    fields = struct.pack("<QI36s", *mark)
    return fields + _CHECKSUM.pack(zlib.crc32(fields, header.seed))


def _read_marks(fd: int, header: Header) -> list[_Mark]:
    found = []
    for at in _MARKS_AT:
        data = os.pread(fd, _MARK.size, at)
        if len(data) < _MARK.size:
            continue
        mark = _Mark(*_MARK.unpack(data)[:-1])
        if data == _packed(header, mark):
            found.append(mark)
    return found


def boot_name(source: Path | None = None) -> bytes:
    """Return the name of this boot of the machine; without one, every use is after a crash."""
    try:
        return (source or BOOT).read_bytes()[:36]
    except OSError:
        return os.urandom(36)


def _damaged(path: Path, at: int) -> ValueError:
    return ValueError(
        f"{shown(path)} is damaged at byte {at}, in a part that was whole: restore it from a copy"
    )

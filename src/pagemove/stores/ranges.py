"""Ranges of a store: checked, cut into blocks, and locked block by block."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pagemove.arguments import whole_number

if TYPE_CHECKING:
    from typing_extensions import Buffer

SMALLEST_BLOCK = 4 << 10
LARGEST_BLOCK = 2 << 20
#: What stores cut themselves into unless told otherwise: as regions do.
BLOCK_SIZE = 64 << 10

_STRIPES = 64


class Piece(NamedTuple):
    """The part of a range that lies in one block.

    Attributes
    ----------
    block : int
        Its number.
    start : int
        First byte in the block.
    at : int
        First byte in the range.
    length : int
        Bytes.
    """

    block: int
    start: int
    at: int
    length: int


def target(buffer: Buffer) -> memoryview:
    """View a buffer as bytes that can be written; BufferError where they cannot."""
    view = memoryview(buffer).cast("B")
    if view.readonly:
        raise BufferError("the buffer is read-only: nothing can be read into it")
    return view


def place(store: object, nbytes: int, offset: int, length: int) -> int:
    """Return `offset`, if so many bytes from there on are within the store; else ValueError."""
    start = whole_number(offset, "offset")
    if not 0 <= start <= nbytes - length:
        raise ValueError(
            f"bytes {start} to {start + length} are not within the {nbytes} of {store!r}"
        )
    return start


def checked_length(nbytes: int) -> int:
    """Return the length of a new store, as an int; ValueError unless it is positive."""
    length = whole_number(nbytes, "nbytes")
    if length <= 0:
        raise ValueError(f"nbytes must be positive, not {length}: there would be nothing to page")
    return length


def checked_block_size(block_size: int) -> int:
    """Return a block size, as an int; ValueError unless a region could have it."""
    size = whole_number(block_size, "block_size", "a number of bytes, such as 65536")
    if not SMALLEST_BLOCK <= size <= LARGEST_BLOCK or size & (size - 1):
        raise ValueError(f"block_size must be a power of two from 4 KiB to 2 MiB, not {size}")
    return size


def pieces(offset: int, length: int, block_size: int) -> Iterator[Piece]:
    """Cut a range at the bounds of blocks."""
    at = 0
    while at < length:
        block, start = divmod(offset + at, block_size)
        part = min(block_size - start, length - at)
        yield Piece(block, start, at, part)
        at += part


def length_of(block: int, block_size: int, nbytes: int) -> int:
    """Return the length of a block, which is shorter at the end of the store."""
    return min(block_size, nbytes - block * block_size)


def is_zero(data: memoryview) -> bool:
    """Return whether there is nothing but zero bytes."""
    return not np.frombuffer(data, np.uint8).any()


class BlockLocks:
    """Locks for blocks, so that two changes of parts of one block do not undo each other."""

    def __init__(self) -> None:
        self._locks = [threading.Lock() for _ in range(_STRIPES)]

    @contextlib.contextmanager
    def held(self, first: int, last: int) -> Iterator[None]:
        """Hold the locks of blocks `first` to `last`."""
        if last - first + 1 >= _STRIPES:
            stripes = list(range(_STRIPES))
        else:
            stripes = sorted({block % _STRIPES for block in range(first, last + 1)})
        with contextlib.ExitStack() as stack:
            # In ascending order, so that no two threads wait for each other.
            for stripe in stripes:
                stack.enter_context(self._locks[stripe])
            yield

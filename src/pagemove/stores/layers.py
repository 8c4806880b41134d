"""Two layers, block by block: what is read from below, and how a block gets on top.

All of it with the locks of the blocks held.
"""

from __future__ import annotations

from collections.abc import Callable

from pagemove.stores import ranges
from pagemove.stores.base import Store, read_whole, write_whole
from pagemove.stores.copies import Copies

_NOTHING = memoryview(b"")


class Layers:
    """The stores of both layers.

    Parameters
    ----------
    top, bottom : Store
        Of one length.
    block_size : int
        What is on top or not as one.
    copies : Copies
        Is told what is copied, and what is written over.
    note : callable
        Called with the first and the last of blocks that are on top as a whole, and sound.
    """

    def __init__(
        self,
        top: Store,
        bottom: Store,
        block_size: int,
        copies: Copies,
        note: Callable[[int, int], object],
    ) -> None:
        self._top, self._bottom, self._block_size = top, bottom, block_size
        self._copies, self._note = copies, note

    def is_part(self, piece: ranges.Piece) -> bool:
        """Whether it is less than its block."""
        return piece.length < ranges.length_of(piece.block, self._block_size, self._top.nbytes)

    def below(self, first: int, count: int) -> memoryview:
        """Read whole blocks of the bottom."""
        place = first * self._block_size
        data = memoryview(bytearray(min(count * self._block_size, self._top.nbytes - place)))
        read_whole(self._bottom, place, data)
        return data

    def overlay(self, block: int, data: memoryview) -> None:
        """Put over a block of the bottom what was written into it, as it is on top."""
        for start, end in self._copies.written(block):
            read_whole(self._top, block * self._block_size + start, data[start:end])

    def put(self, first: int, count: int, data: memoryview) -> None:
        """Put blocks of the bottom on top."""
        failures, last = self._copies.failures, first + count - 1
        write_whole(self._top, first * self._block_size, data)
        if self._copies.note_copied(first, last, failures):
            self._note(first, last)

    def complete(self, block: int, start: int = 0, part: memoryview = _NOTHING) -> None:
        """Put a block on top that is not there: what is below, and a part that is written into it.

        What was written into it before stays as it is on top: whether it has arrived there only
        the top knows, and who has written it.
        """
        failures, end = self._copies.failures, start + part.nbytes
        data = self.below(block, 1)
        data[start:end] = part
        kept = self._copies.written(block)
        kept.remove(start, end)
        for first, last in kept.gaps(0, data.nbytes):
            write_whole(self._top, block * self._block_size + first, data[first:last])
        sound = self._copies.note_copied(block, block, failures)
        self._copies.note_written(block, start, end)
        if sound:
            self._note(block, block)

    def write_over(self, pieces: list[ranges.Piece], data: memoryview) -> None:
        """Write blocks that follow each other and are on top, or are written as a whole."""
        first, last = pieces[0], pieces[-1]
        write_whole(self._top, first.block * self._block_size + first.start, data)
        for piece in {first, last}:
            if self.is_part(piece):
                self._copies.note_written(piece.block, piece.start, piece.start + piece.length)
        whole = [piece.block for piece in pieces if not self.is_part(piece)]
        if whole:
            self._copies.forget(whole[0], whole[-1])
        self._note(first.block, last.block)

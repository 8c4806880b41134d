"""Which blocks of the upper layer came from below, and may not be durable yet.

After a flush that failed such a block may be lost on top. It is below still, but for what was
written into it since: that only who has written it can write again.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from pagemove.stores.layermap import LayerMap, blocks_of
from pagemove.stores.unsynced import RangeSet


class State(NamedTuple):
    """What is known, to be pickled: numbers of blocks, and ranges in blocks by their number."""

    copied: list[int]
    doubtful: list[int]
    parts: dict[int, list[tuple[int, int]]]


class Copies:
    """Blocks that were copied since the last flush, and those that a failed one may have lost.

    A method that is passed blocks is called with their locks held.

    Parameters
    ----------
    nbytes, block_size : int
        Of the store.
    state : State, optional
        What is known to begin with.

    Attributes
    ----------
    failures : int
        How many flushes have failed.
    """

    def __init__(self, nbytes: int, block_size: int, state: State | None = None) -> None:
        self._copied = LayerMap(nbytes, block_size)
        self._doubtful = LayerMap(nbytes, block_size)
        # Of blocks in either, what was written into a part of them.
        self._parts: dict[int, RangeSet] = {}
        # So that a copy is noted either before a failure, which doubts it then, or as doubtful.
        self._lock = threading.Lock()
        self.failures = 0
        if state is not None:
            for found, blocks in ((self._copied, state.copied), (self._doubtful, state.doubtful)):
                for block in blocks:
                    found.add(block, block)
            self._parts = {block: RangeSet(ranges) for block, ranges in state.parts.items()}

    @property
    def state(self) -> State:
        """What is known now. Without a lock, which in a forked child may be held forever."""
        parts = {block: list(ranges) for block, ranges in self._parts.copy().items()}
        return State(blocks_of(self._copied.bits), self.doubtful, parts)

    @property
    def copied(self) -> bytes:
        """The blocks that the next flush makes durable, as a bitmap."""
        return self._copied.bits

    @property
    def doubtful(self) -> list[int]:
        """The blocks that have to be copied again."""
        return blocks_of(self._doubtful.bits)

    def is_doubtful(self, block: int) -> bool:
        """Whether a block has to be copied again."""
        return block in self._doubtful

    def written(self, block: int) -> RangeSet:
        """Return what was written into a block since it was copied, as ranges in the block."""
        return RangeSet(self._parts.get(block, ()))

    def note_copied(self, first: int, last: int, failures: int) -> bool:
        """Record copied blocks, as of so many failed flushes; return whether they are sound."""
        with self._lock:
            sound = failures == self.failures
            if sound:
                self._copied.add(first, last)
                self._doubtful.remove(first, last)
            else:
                self._doubtful.add(first, last)
            return sound

    def note_written(self, block: int, start: int, end: int) -> None:
        """Note what was written into a part of a block, if that was copied."""
        if block in self._copied or block in self._doubtful:
            self._parts.setdefault(block, RangeSet()).add(start, end)

    def forget(self, first: int, last: int) -> None:
        """Note that blocks were written as a whole."""
        self._copied.remove(first, last)
        self._doubtful.remove(first, last)
        for block in range(first, last + 1):
            self._parts.pop(block, None)

    def fail(self) -> list[int]:
        """Record a failed flush; return the blocks to doubt. Others are still being copied."""
        with self._lock:
            self.failures += 1
            return blocks_of(self._copied.bits)

    def doubt(self, block: int) -> bool:
        """Record that a block may be lost, unless it was written whole since; return whether."""
        if block not in self._copied:
            return False
        self._doubtful.add(block, block)
        self._copied.remove(block, block)
        return True

    def settle(self, copied: bytes) -> None:
        """Note that the blocks of a bitmap are durable."""
        self._copied.clear(copied)
        # A part that another thread adds meanwhile is of no use, and of no harm: it is looked at
        # only of a block that is doubtful, and this one is copied no more.
        for block in list(self._parts):
            if copied[block >> 3] & 1 << (block & 7):
                self._parts.pop(block, None)

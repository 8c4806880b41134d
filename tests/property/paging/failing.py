"""A store that is broken for a while: what cannot be read is no data, what cannot be written stays.

Writes are broken by RLIMIT_FSIZE, reads by cutting the file short. Blocks that were touched in such
a time may be poisoned until they are evicted; the model does not guess which, but no block that
answers may answer wrongly.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from model.region import Words
from pagemove import StoreError
from support.paging import Fault, Struck

from .machine import Machine, limits, modes, number


class FailingMachine(Machine):
    """The same with a store that can be broken and mended."""

    TIMEOUT: ClassVar[float] = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.broken = ""
        #: Since the last time that all poison was taken away; and since the region was opened.
        self.ever = self.failed = False

    @initialize(mode=modes, limit=limits, faults=st.just([]), ahead=st.booleans())
    def start(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        self.open(mode, limit, faults, ahead)

    def works(self) -> bool:
        return not self.broken

    @precondition(works)
    @rule()
    def break_writes(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        self.broken, self.ever, self.failed = "writes", True, True

    @precondition(lambda self: not self.broken and self.model.mode != "r+")
    @rule(at=number)
    def break_reads(self, at: int) -> None:
        """What is behind the new end cannot be read."""
        first, _ = self.words(at, 1)
        os.truncate(self.path, 8 * first)
        self.broken, self.ever, self.failed = "reads", True, True

    @precondition(lambda self: self.broken)
    @rule()
    def mend(self) -> None:
        if self.broken == "writes":
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        else:
            with self.path.open("r+b") as file:
                file.write(self.model.store.tobytes())
        self.broken = ""

    @precondition(works)
    @rule()
    def recover(self) -> None:
        """Evict all, which takes poison away: from now on nothing may fail."""
        with contextlib.suppress(StoreError):
            self.memory.flush()  # tells once of what was poisoned
        self.memory.evict()
        self.ever = False
        self.check_read(0, self.load(0, self.nwords))

    # The same rules, where they may fail.

    def load(self, first: int, count: int) -> Words:
        """Read; where the store has been broken, what cannot be had is what the model says."""
        try:
            return super().load(first, count)
        except Struck:
            assert self.ever, "struck by a signal over a store that works"
            return self.model.read(first, count)

    def store(self, first: int, values: Words) -> None:
        """Write word by word where it may fail: the model learns what has been written."""
        if not self.ever:
            super().store(first, values)
            return
        block = self.model.block
        for begin in self.pieces(first, len(values)):
            end = min(begin - begin % block + block, first + len(values))
            piece = values[begin - first : end - first]
            try:
                super().store(begin, piece)
            except Struck:
                # As far as the copy has come, which nobody knows: look, and believe what may be.
                self.adopt(begin, piece)
                continue
            self.model.write(begin, piece)

    def pieces(self, first: int, count: int) -> list[int]:
        """List where the part of each block begins."""
        return [
            max(first, self.model.span(block).start) for block in self.model.touched(first, count)
        ]

    def adopt(self, first: int, values: Words) -> None:
        """Take over which words of a store that was struck have been written."""
        before = self.model.read(first, len(values)).copy()
        try:
            seen = Machine.load(self, first, len(values))
        except Struck:
            return
        assert ((seen == before) | (seen == values)).all()
        self.model.write(first, seen)

    def write_model(self, first: int, values: Words) -> None:
        """`store` has told the model already."""
        if not self.ever:
            super().write_model(first, values)

    @rule()
    def flush(self) -> None:
        try:
            self.memory.flush()
        except StoreError as error:
            assert self.ever
            if error.operation == "read" and not self.broken:
                self.model.flush()  # all is stored; it tells of blocks that could not be had
            return
        self.model.flush()

    @rule()
    def evict_all(self) -> None:
        with self.may_fail():
            super().evict_all()

    @rule(at=number, length=number)
    def evict(self, at: int, length: int) -> None:
        with self.may_fail():
            super().evict(at, length)

    @rule(at=number, length=number, wait=st.booleans())
    def prefetch(self, at: int, length: int, wait: bool) -> None:
        with self.may_fail():
            super().prefetch(at, length, wait)

    @precondition(lambda self: not self.ever)
    @rule(places=st.lists(number, min_size=1, max_size=40), width=st.sampled_from([1, 3, 700]))
    def take(self, places: list[int], width: int) -> None:
        super().take(places, width)

    @rule(places=st.lists(number, min_size=1, max_size=40), wait=st.booleans())
    def prefetch_scattered(self, places: list[int], wait: bool) -> None:
        with self.may_fail():
            super().prefetch_scattered(places, wait)

    @contextlib.contextmanager
    def may_fail(self):
        try:
            yield
        except StoreError:
            assert self.ever, "a store that works is said to fail"

    @precondition(lambda self: not self.broken and not self.ever)
    @rule(at=number, length=number)
    def change_file(self, at: int, length: int) -> None:
        super().change_file(at, length)

    @precondition(lambda self: not self.ever)
    @rule(at=number, length=number)
    def read_by_the_kernel(self, at: int, length: int) -> None:
        super().read_by_the_kernel(at, length)

    @precondition(lambda self: not self.ever and self.model.mode != "r")
    @rule(at=number, length=number)
    def write_by_the_kernel(self, at: int, length: int) -> None:
        super().write_by_the_kernel(at, length)

    @precondition(works)
    @rule(mode=modes, limit=limits, ahead=st.booleans())
    def reopen(self, mode: str, limit: int | None, ahead: bool) -> None:
        self.close()
        self.open(mode, limit, [], ahead)
        self.ever = self.failed = False

    def check_errors(self, errors: int) -> None:
        assert self.failed or errors == 0

    def in_file(self) -> Words:
        """Read the file; of what is cut off, what the model says."""
        found = super().in_file()
        if len(found) < self.nwords:
            assert self.broken == "reads"
            return np.concatenate([found, self.model.store[len(found) :]])
        return found

    def teardown(self) -> None:
        if self.broken:
            self.mend()
        super().teardown()

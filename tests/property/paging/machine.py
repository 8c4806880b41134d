"""What can happen to a region, done to the real one and to the model."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pagemove
from model.region import Region, Words
from pagemove import PAGE_SIZE, PageState, lowlevel
from pagemove.introspect import states_at
from support.paging import MODES, Fault, contents_of, load, paged, store

PAGE_WORDS = PAGE_SIZE // 8

NUMBERS = 1024
number = st.integers(0, NUMBERS - 1)
modes = st.sampled_from(MODES)
limits = st.sampled_from([None, 4, 4, 5, 7, 40])

_calls = {"first": st.integers(0, 60), "count": st.integers(1, 3)}
_transfers = st.sampled_from(["read", "write"])
_codes = st.sampled_from([errno.EIO, errno.EINTR, errno.ENOSPC])
#: Calls that fail once or twice, with all the time in the world to try again.
passing = st.one_of(
    st.builds(Fault, _transfers, errno=_codes, **_calls),
    st.builds(Fault, _transfers, short=st.sampled_from([1, 8, PAGE_SIZE, 1 << 30]), **_calls),
    st.builds(Fault, st.sampled_from(["read", "write", "flush"]), delay=st.just(0.003), **_calls),
)
troubles = st.lists(passing, max_size=4)


class Machine(RuleBasedStateMachine):
    """A region over a file, and the model of both."""

    BLOCK: ClassVar[int] = PAGE_SIZE
    BLOCKS: ClassVar[int] = 13
    #: Words of the file beyond whole blocks: a store need not end where a block does.
    TAIL: ClassVar[int] = 517
    TIMEOUT: ClassVar[float] = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.path = self.folder / "file"
        self.pipe = os.memfd_create("pipe")
        self.stack.callback(os.close, self.pipe)
        self.token = 0
        self.nwords = (self.BLOCKS * self.BLOCK) // 8 + self.TAIL
        self.path.write_bytes(contents_of(self.nwords * 8))

    @initialize(mode=modes, limit=limits, faults=troubles, ahead=st.booleans())
    def start(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        self.open(mode, limit, faults, ahead)

    # The real one.

    def open(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        self.limit = None if limit is None else limit * self.BLOCK
        how: dict[str, Any] = {
            "resident_limit": self.resident_limit(),
            "block_size": self.BLOCK,
            "store_timeout": self.TIMEOUT,
            "prefetch": "auto" if ahead else "off",
            # A write that fails once is an error of the background's, which has nobody to raise to.
            "writeback_interval": None if faults else 0.003,
        }
        self.region = paged(self.path, mode, faults=faults, **how)
        self.memory = self.region.__enter__()
        self.model = Region(self.in_file(), mode, self.BLOCK // 8)

    def resident_limit(self) -> Any:
        return self.limit

    def in_file(self) -> Words:
        """Read the file."""
        return np.fromfile(self.path, np.uint64)

    def load(self, first: int, count: int) -> Words:
        """Read words of the region; `Struck` if that is a signal."""
        return np.frombuffer(load(self.memory.address + 8 * first, 8 * count), np.uint64)

    def store(self, first: int, values: Words) -> None:
        """Write words of the region; `Struck` if that is a signal."""
        store(self.memory.address + 8 * first, values.tobytes())

    # What is drawn.

    def words(self, at: int, length: int) -> tuple[int, int]:
        """Make a range of words: of few, of a page, of a block, or of some blocks."""
        block = self.BLOCK // 8
        lengths = [1, 3, PAGE_WORDS, block, block + 9, 3 * block]
        first = at * self.nwords // NUMBERS
        if length % 3 == 0:
            first -= first % block
        return first, min(lengths[length % len(lengths)], self.nwords - first)

    def values(self, count: int) -> Words:
        """Make words that are nowhere else."""
        self.token += 1
        return np.arange(count, dtype=np.uint64) | np.uint64(self.token << 40)

    # What programs do.

    def check_read(self, first: int, found: Words) -> None:
        wrong = self.model.check_region(first, found)
        assert wrong is None, wrong

    @rule(at=number, length=number)
    def read(self, at: int, length: int) -> None:
        first, count = self.words(at, length)
        self.check_read(first, self.load(first, count))

    @rule(places=st.lists(number, min_size=1, max_size=12))
    def read_scattered(self, places: list[int]) -> None:
        for place in places:
            first, _ = self.words(place, 1)
            self.check_read(first, self.load(first, 1))

    @rule(places=st.lists(number, min_size=1, max_size=40), width=st.sampled_from([1, 3, 700]))
    def take(self, places: list[int], width: int) -> None:
        """Copy many places at once, wide ones over the ends of blocks."""
        rows = self.memory.asarray(np.uint64)[: self.nwords // width * width].reshape(-1, width)
        picked = [place * len(rows) // NUMBERS for place in places]
        for row, found in zip(picked, pagemove.take(rows, picked), strict=True):
            self.check_read(row * width, found)

    @rule(places=st.lists(number, min_size=1, max_size=40), wait=st.booleans())
    def prefetch_scattered(self, places: list[int], wait: bool) -> None:
        pagemove.prefetch(self.memory, [8 * self.words(place, 1)[0] for place in places], wait=wait)

    @rule(at=number)
    def scan(self, at: int) -> None:
        """Read a word of each of many blocks that follow each other."""
        block = self.BLOCK // 8
        for first in range(at % block, self.nwords, block):
            self.check_read(first, self.load(first, 1))

    def writable(self) -> bool:
        return self.model.mode != "r"

    @precondition(writable)
    @rule(at=number, length=number)
    def write(self, at: int, length: int) -> None:
        first, count = self.words(at, length)
        values = self.values(count)
        self.store(first, values)
        self.write_model(first, values)

    @precondition(writable)
    @rule(at=number)
    def write_scattered(self, at: int) -> None:
        """Write a word of every second block."""
        block = self.BLOCK // 8
        for first in range(at % block, self.nwords, 2 * block):
            values = self.values(1)
            self.store(first, values)
            self.write_model(first, values)

    @rule(at=number, length=number)
    def read_by_the_kernel(self, at: int, length: int) -> None:
        first, count = self.words(at, length)
        with memoryview(self.memory) as view:
            done = os.pwrite(self.pipe, view[8 * first : 8 * (first + count)], 0)
        assert done == 8 * count
        self.check_read(first, np.frombuffer(os.pread(self.pipe, done, 0), np.uint64))

    @precondition(writable)
    @rule(at=number, length=number)
    def write_by_the_kernel(self, at: int, length: int) -> None:
        first, count = self.words(at, length)
        values = self.values(count)
        os.pwrite(self.pipe, values.tobytes(), 0)
        with memoryview(self.memory) as view:
            assert os.preadv(self.pipe, [view[8 * first : 8 * (first + count)]], 0) == 8 * count
        self.model.write(first, values)

    def write_model(self, first: int, values: Words) -> None:
        """Return the model of what `store` has written."""
        self.model.write(first, values)

    # What they ask of the region.

    @rule(at=number, length=number, wait=st.booleans())
    def prefetch(self, at: int, length: int, wait: bool) -> None:
        first, count = self.words(at, length)
        self.memory.prefetch(8 * first, 8 * count, wait=wait)

    @rule(at=number, length=number)
    def evict(self, at: int, length: int) -> None:
        first, count = self.words(at, length)
        self.memory.evict(8 * first, 8 * count)

    @rule()
    def evict_all(self) -> None:
        self.memory.evict()
        stats = self.memory.stats()
        # Read-ahead may bring some in at any time.
        assert stats.dirty_nbytes == 0

    @rule()
    def flush(self) -> None:
        self.memory.flush()
        self.model.flush()
        if self.model.mode == "r+":
            assert self.memory.stats().dirty_nbytes == 0

    @rule(mode=modes, limit=limits, faults=troubles, ahead=st.booleans())
    def reopen(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        self.close()
        self.open(mode, limit, faults, ahead)

    # What others do.

    @rule(at=number, length=number, pages=st.integers(1, 3))
    def discard(self, at: int, length: int, pages: int) -> None:
        """MADV_DONTNEED on clean blocks, whole or in part."""
        first, count = self.words(at, length)
        page = first // PAGE_WORDS
        count = max(count // PAGE_WORDS, pages)
        count = min(count, self.nwords // PAGE_WORDS - page)
        if count > 0 and self.model.is_clean(page * PAGE_WORDS, count * PAGE_WORDS):
            address = self.memory.address + page * PAGE_SIZE
            lowlevel.madvise(address, count * PAGE_SIZE, mmap.MADV_DONTNEED)

    @rule(at=number, length=number)
    def change_file(self, at: int, length: int) -> None:
        """Somebody writes to the file; the region is told by evict()."""
        first, count = self.words(at, length)
        if not self.model.is_clean(first, count):
            return
        values = self.values(count)
        with self.path.open("r+b") as file:
            file.seek(8 * first)
            file.write(values.tobytes())
        self.memory.evict(8 * first, 8 * count)
        self.model.change_store(first, values)

    # What has to hold after every step.

    @invariant()
    def within_the_limit(self) -> None:
        if not hasattr(self, "memory"):
            return
        stats = self.memory.stats()
        assert self.limit is None or stats.resident_nbytes <= self.limit
        self.check_errors(stats.errors)

    def check_errors(self, errors: int) -> None:
        assert errors == 0

    @invariant()
    def same_store(self) -> None:
        if hasattr(self, "memory"):
            wrong = self.model.check_store(self.in_file())
            assert wrong is None, f"in the file: {wrong}"

    @invariant()
    def same_resident(self) -> None:
        """All that is mapped is right; looking at it does not touch what is not."""
        if not hasattr(self, "memory"):
            return
        pages = self.nwords // PAGE_WORDS
        states = states_at(self.memory.address, pages)
        for page in np.flatnonzero(states & PageState.PRESENT).tolist():
            self.check_read(page * PAGE_WORDS, self.load(page * PAGE_WORDS, PAGE_WORDS))

    # The end.

    def close(self) -> None:
        region, self.region = self.region, None
        region.__exit__(None, None, None)
        self.model.flush()
        found = self.in_file()
        assert (found == self.model.store).all(), "the file is not what was flushed by close"

    def teardown(self) -> None:
        try:
            if getattr(self, "region", None) is not None:
                self.check_read(0, self.load(0, self.nwords))
                self.close()
        finally:
            if getattr(self, "region", None) is not None:
                with contextlib.suppress(Exception):
                    self.region.__exit__(None, None, None)
            self.stack.close()

"""A store whose calls are late, done twice or in half, or raise whatever they like.

The store runs in a helper process, around a disk that keeps what was flushed apart from what was
only written (`support.unruly`). Calls that are late wait until the machine lets them go on: by then
a newer write of the same words may have been made, and have been flushed. It must not be undone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from model.region import Region, Words
from pagemove import PagedMemory, StoreError
from support import wait_for
from support.paging import Fault, Struck
from support.unruly import Disk, Plan, Unruly

from .failing import FailingMachine
from .machine import Machine, limits, number

#: Most of what may go wrong does so with writes.
modes = st.sampled_from(["r+", "r", "r+", "c", "r+"])
_HELD = ("late", "doubled", "late after")
_RAISING = ("before", "after", "torn")


class UnrulyMachine(FailingMachine):
    """The same with a store in another process that may do all that a store may do."""

    TIMEOUT: ClassVar[float] = 0.25
    #: What only the pager's own reads and writes of a file have.
    break_writes = break_reads = None  # type: ignore[assignment]

    @initialize(mode=modes, limit=limits, faults=st.just([]), ahead=st.booleans())
    def start(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        self.opened = 0
        self.open(mode, limit, faults, ahead)

    def open(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        self.limit = None if limit is None else limit * self.BLOCK
        self.opened += 1
        folder = self.folder / str(self.opened)
        folder.mkdir()
        self.disk = Disk(self.path)
        self.unruly = Unruly(self.disk, folder, Plan(self.opened))
        self.region = self.paged(
            mode=mode,
            resident_limit=self.limit,
            block_size=self.BLOCK,
            store_timeout=self.TIMEOUT,
            prefetch="auto" if ahead else "off",
        )
        self.memory = self.region.__enter__()
        self.model = Region(self.in_file(), mode, self.BLOCK // 8)
        # On a machine that is busy a quarter of a second may pass for no reason.
        self.ever = self.failed = True
        self.broken = ""

    @contextlib.contextmanager
    def paged(self, **how: Any) -> Iterator[PagedMemory]:
        """Open a region over the store, and close it."""
        with self.disk, PagedMemory(self.unruly, **how) as memory:
            yield memory

    @precondition(FailingMachine.works)
    @rule(
        operation=st.sampled_from(["read", "write", "write", "flush"]), how=st.sampled_from(_HELD)
    )
    def hold(self, operation: str, how: str) -> None:
        """The next call is late, until `mend`."""
        self.unruly.whims.order(operation, how)
        self.broken = "held"

    @rule(operation=st.sampled_from(["read", "write", "flush"]), how=st.sampled_from(_RAISING))
    def raise_next(self, operation: str, how: str) -> None:
        """The next call raises."""
        self.unruly.whims.order(operation, how)

    @precondition(lambda self: self.broken)
    @rule()
    def mend(self) -> None:
        """What is late lands."""
        whims = self.unruly.whims
        whims.trouble = 0
        whims.gate += 1
        wait_for(self.unruly.landed)
        self.broken = ""

    @precondition(lambda self: self.model.mode == "r+")
    @rule(at=number, length=number, how=st.sampled_from([*_HELD, *_RAISING]))
    def overtaken(self, at: int, length: int, how: str) -> None:
        """Write, and have trouble with it; write anew, flush; only then the first one lands."""
        if self.broken:
            self.mend()
        first, count = self.words(at, length % 6)
        self.store(first, self.values(count))
        self.unruly.whims.order("write", how)
        self.broken = "held"
        self.flush()
        self.store(first, self.values(count))
        self.flush()
        self.mend()

    @precondition(lambda self: self.model.mode == "r+")
    @rule(at=number, length=number)
    def overtaken_by_far(self, at: int, length: int) -> None:
        """The first write is late for as long as it takes to save the second."""
        self.overtaken(at, length, "late")

    @precondition(FailingMachine.works)
    @rule()
    def recover(self) -> None:
        """All can be had again, and saved."""
        self.unruly.whims.trouble = 0
        self.again(self.memory.flush)
        self.model.flush()
        self.again(self.memory.evict)
        self.check_read(0, self.again(lambda: Machine.load(self, 0, self.nwords)))

    def again(self, call: Any) -> Any:
        """Call what may fail because of what was, and has to do in the end."""

        def attempt() -> tuple[Any] | None:
            try:
                return (call(),)
            except (StoreError, Struck):
                with contextlib.suppress(StoreError):
                    self.memory.evict()
                return None

        return wait_for(attempt)[0]

    def adopt(self, first: int, values: Words) -> None:
        """Take over which words of a store that was struck have been written, without fail."""
        if self.broken:
            self.mend()
        before = self.model.read(first, len(values)).copy()
        seen = self.again(lambda: Machine.load(self, first, len(values)))
        assert ((seen == before) | (seen == values)).all()
        self.model.write(first, seen)

    def change_file(self, at: int, length: int) -> None:
        """Nobody else writes to a disk of these."""

    @precondition(lambda self: self.works() or self.model.mode != "r+")
    @rule(mode=modes, limit=limits, ahead=st.booleans())
    def reopen(self, mode: str, limit: int | None, ahead: bool) -> None:
        """Close it, perhaps while a read is late: that one has nowhere to land."""
        late = self.unruly
        self.close()
        late.whims.gate += 1
        wait_for(late.landed)
        self.open(mode, limit, [], ahead)

    def close(self) -> None:
        if self.model.mode == "r+":
            self.unruly.whims.trouble = 0
            self.again(self.memory.flush)
        super().close()

    def in_file(self) -> Words:
        return np.fromfile(self.path, np.uint64)

    def teardown(self) -> None:
        if getattr(self, "region", None) is not None:
            if self.broken:
                self.mend()
            self.unruly.whims.trouble = 0
            with contextlib.suppress(StoreError, Struck):
                self.recover()
        super().teardown()

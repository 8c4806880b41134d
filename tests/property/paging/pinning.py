"""A program that pins parts of a region, by itself or for system calls that nobody serves."""

from __future__ import annotations

import contextlib
import math

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from model.region import Words
from pagemove import PAGE_SIZE, PageState, pinned
from pagemove._native import pager
from pagemove.introspect import states_at
from support.paging import MODES, Fault

from .machine import Machine, number, troubles

_limits = st.sampled_from([None, 7, 9, 12, 14, 16, 40])


class PinningMachine(Machine):
    """Blocks that are pinned are there whatever happens, and no more of them than the limit allows.

    What may be written by system calls counts as changed from then on, whether it was or not, and a
    flush saves it without changing that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pins: list[tuple[contextlib.ExitStack, range]] = []
        #: Pinned, and changed while they were: such a block stays dirty until it is unpinned.
        self.dirty: set[int] = set()
        self.stack.callback(pager.set_kernel_faults, True)

    @initialize(
        mode=st.sampled_from(MODES),
        limit=_limits,
        faults=troubles,
        ahead=st.booleans(),
        served=st.booleans(),
    )
    def start(  # type: ignore[override]
        self, mode: str, limit: int | None, faults: list[Fault], ahead: bool, served: bool
    ) -> None:
        pager.set_kernel_faults(served)
        self.open(mode, limit, faults, ahead)
        self.served = self.memory.kernel_faults
        assert served or not self.served

    @rule(mode=st.sampled_from(MODES), limit=_limits, faults=troubles, ahead=st.booleans())
    def reopen(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        super().reopen(mode, limit, faults, ahead)

    # What is pinned.

    def blocks_pinned(self) -> set[int]:
        return {block for _, blocks in self.pins for block in blocks}

    def most(self) -> float:
        """Count the blocks that can be pinned at most."""
        if self.limit is None:
            return math.inf
        writable = self.model.mode != "r"
        limit, blocks = self.limit // self.BLOCK, self.model.blocks
        return max(
            n for n in range(blocks + 1) if n == 0 or n + min(blocks - n + writable, 4) <= limit
        )

    @rule(at=number, length=number, write=st.booleans())
    def pin(self, at: int, length: int, write: bool) -> None:
        first, count = self.words(at, length)
        write = write and self.model.mode != "r"
        self.hold(first, count, write)

    def hold(self, first: int, count: int, write: bool) -> bool:
        """Pin a range; say whether that can be."""
        blocks = self.model.touched(first, count)
        view = memoryview(self.memory)[8 * first : 8 * (first + count)]
        stack = contextlib.ExitStack()
        try:
            stack.enter_context(pinned(view, write=write))
        except ValueError:
            assert len(self.blocks_pinned() | set(blocks)) > self.most()
            return False
        finally:
            view.release()
        assert len(self.blocks_pinned() | set(blocks)) <= self.most()
        self.pins.append((stack, blocks))
        if write:
            self.count_as_changed(blocks)
            self.dirty.update(blocks)
        return True

    def write_model(self, first: int, values: Words) -> None:
        super().write_model(first, values)
        self.dirty |= self.blocks_pinned() & set(self.model.touched(first, len(values)))

    def count_as_changed(self, blocks: range | set[int]) -> None:
        for block in blocks:
            span = self.model.span(block)
            self.model.write(span.start, self.model.contents[span].copy())

    @precondition(lambda self: self.pins)
    @rule(which=number)
    def unpin(self, which: int) -> None:
        stack, _ = self.pins.pop(which % len(self.pins))
        stack.close()
        self.dirty &= self.blocks_pinned()

    def unpin_all(self) -> None:
        while self.pins:
            self.unpin(0)

    # What that changes for others.

    @rule(at=number, length=number)
    def read_by_the_kernel(self, at: int, length: int) -> None:
        if self.served or self.hold(*self.words(at, length), write=False):
            super().read_by_the_kernel(at, length)
            if not self.served:
                self.unpin(-1)

    @precondition(Machine.writable)
    @rule(at=number, length=number)
    def write_by_the_kernel(self, at: int, length: int) -> None:
        if self.served or self.hold(*self.words(at, length), write=True):
            super().write_by_the_kernel(at, length)
            if not self.served:
                self.unpin(-1)

    @rule()
    def evict_all(self) -> None:
        self.memory.evict()
        stats = self.memory.stats()
        assert stats.dirty_nbytes <= len(self.blocks_pinned()) * self.BLOCK

    @rule()
    def flush(self) -> None:
        kept = self.blocks_pinned() & set(self.model.versions)
        self.memory.flush()
        self.model.flush()
        if self.model.mode == "r+":
            # What was changed before it was pinned may have been written in the background, and be
            # clean: the model does not learn of that.
            dirty = self.memory.stats().dirty_nbytes
            assert len(self.dirty) * self.BLOCK <= dirty <= len(kept) * self.BLOCK
            assert (self.in_file() == self.model.contents).all()
            self.count_as_changed(kept)

    @rule(at=number, length=number, pages=st.integers(1, 3))
    def discard(self, at: int, length: int, pages: int) -> None:
        if not self.pins:
            super().discard(at, length, pages)

    @rule(at=number, length=number)
    def change_file(self, at: int, length: int) -> None:
        first, count = self.words(at, length)
        if not self.blocks_pinned() & set(self.model.touched(first, count)):
            super().change_file(at, length)

    @invariant()
    def pinned_is_there(self) -> None:
        if not hasattr(self, "memory"):
            return
        blocks = self.blocks_pinned()
        assert self.memory.stats().pinned_nbytes == len(blocks) * self.BLOCK
        pages = self.BLOCK // PAGE_SIZE
        there = PageState.PRESENT | PageState.SWAPPED
        for block in blocks:
            states = states_at(self.memory.address + block * self.BLOCK, pages)
            assert (states & there).all(), f"block {block} is pinned, and not there"

    def close(self) -> None:
        self.unpin_all()
        super().close()

    def teardown(self) -> None:
        with contextlib.suppress(AttributeError):
            self.unpin_all()
        super().teardown()

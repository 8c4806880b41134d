"""What happens to areas besides moving: each rule does the same in the kernel and in the model.

A rule that would be SIGSEGV (touching a guard page), or of which no contract says anything (locking
a range with a gap in it), does nothing. After every step contents, page states and mappings of all
areas are compared.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pagemove
from model import PAGE, AddressSpace, Kind, Registration, State
from pagemove import lowlevel
from pagemove._native import remap
from support import missing

from .arena import Area, Arena, expected_vma
from .outcomes import in_kernel, in_model

_NO_GUARDS = missing("guard")

NUMBERS = 64
number = st.integers(0, NUMBERS - 1)
kinds = st.sampled_from(["anonymous", "anonymous", "anonymous", "shared", "file"])
protections = st.sampled_from(["rw", "rw", "rw", "r", ""])


class World(RuleBasedStateMachine):
    """Areas in the model and in the kernel, and what can happen to them besides moving."""

    FOREIGN: ClassVar[list[int]] = [14, 10]
    OWNED: ClassVar[list[int]] = [8]
    WITH_HUGE: ClassVar[bool] = False
    #: Offsets and lengths that ranges have, in pages.
    OFFSETS: ClassVar[list[int]] = list(range(14))
    COUNTS: ClassVar[list[int]] = [1, 1, 2, 3, 4, 8]
    #: The pages of a range that one rule touches.
    TOUCHED: ClassVar[int] = 8
    #: Words of a page between those compared after every step; in the end all are.
    STRIDE: ClassVar[int] = 1
    #: The kernel's defects that the library is to reckon with; None for those it has.
    DEFECTS: ClassVar[int | None] = None

    def __init__(self) -> None:
        super().__init__()
        assert {state.name: int(state) for state in State} == {
            state.name: int(state) for state in pagemove.PageState
        }
        if self.DEFECTS is not None:
            remap.set_defects(self.DEFECTS)
        self.arena = Arena(self.FOREIGN, self.OWNED, huge=self.WITH_HUGE)
        self.space = AddressSpace()
        self.space.map(self.arena.first, self.arena.count, "", anonymous=False)
        for area in self.arena.areas:
            self.space.map(area.first, area.count, inherited=area.memory is None)
            if area.memory is not None:
                self.space.register_here(area.first)
        self.children: list[int] = []
        self.token = 0

    # Ranges.

    def area(self, which: int) -> Area:
        return self.arena.areas[which % len(self.arena.areas)]

    def range(self, which: int, at: int, length: int) -> tuple[int, int]:
        """Return first page and number of pages of a range within one area."""
        area = self.area(which)
        offset = self.offset(area, at)
        return area.first + offset, min(self.count(length), area.count - offset)

    def offset(self, area: Area, at: int) -> int:
        return self.OFFSETS[at % len(self.OFFSETS)] % area.count

    def count(self, length: int) -> int:
        return self.COUNTS[length % len(self.COUNTS)]

    def room(self, which: int, page: int) -> int:
        """Count the pages of an area from a page on."""
        return self.area(which).first + self.area(which).count - page

    def foreign(self, which: int) -> bool:
        return self.area(which).memory is None

    def ordinary(self, first: int, count: int, *, writable: bool = False) -> bool:
        """Whether the range is private anonymous memory all over, and writable if need be."""
        mappings = [self.space.mapping(page) for page in range(first, first + count)]
        return all(
            mapping is not None and mapping.movable and (not writable or "w" in mapping.prot)
            for mapping in mappings
        )

    def touchable(self, page: int, *, write: bool) -> bool:
        mapping, entry = self.space.mapping(page), self.space.pages.get(page)
        if mapping is None or not mapping.movable or ("w" if write else "r") not in mapping.prot:
            return False
        return entry is None or entry.kind in (Kind.ANON, Kind.ZERO)

    def writable(self, page: int) -> bool:
        return self.ordinary(page, 1, writable=True)

    def has(self, first: int, count: int, *wanted: Kind) -> bool:
        entries = [self.space.pages.get(page) for page in range(first, first + count)]
        return any(entry is not None and entry.kind in wanted for entry in entries)

    def huge_at(self, page: int) -> bool:
        return bool(pagemove.introspect.states_at(page * PAGE, 1)[0] & State.HUGE)

    # Memory as everybody uses it.

    @initialize(filled=st.lists(st.tuples(number, number, number), min_size=2, max_size=6))
    def fill(self, filled: list[tuple[int, int, int]]) -> None:
        """Begin with something to move: empty areas are what a machine is stuck in for long."""
        for which, at, length in filled:
            self.write(which, at, length)

    @rule(which=number, at=number, length=number)
    def write(self, which: int, at: int, length: int) -> None:
        first, count = self.range(which, at, length)
        words = self.area(which).words()
        for page in range(first, first + min(count, self.TOUCHED)):
            if self.touchable(page, write=True):
                self.token += 1
                words[page - self.area(which).first] = self.token
                self.space.touch_write(page, self.token, huge=self.huge_at(page))

    @rule(which=number, at=number, length=number)
    def read(self, which: int, at: int, length: int) -> None:
        first, count = self.range(which, at, length)
        words = self.area(which).words()
        for page in range(first, first + min(count, self.TOUCHED)):
            if self.touchable(page, write=False):
                seen = words[page - self.area(which).first]
                token = int(seen[0])
                assert (seen == token).all()
                assert token == self.space.touch_read(page, huge=self.huge_at(page))

    def advise(self, first: int, count: int, advice: int, change: Callable[[], object]) -> None:
        seen = in_kernel(lambda: self.arena.advise(first, count, advice))
        assert seen == in_model(change)

    @rule(which=number, at=number, length=number)
    def discard(self, which: int, at: int, length: int) -> None:
        first, count = self.range(which, at, length)
        memory = self.area(which).memory
        if memory is None:
            self.advise(first, count, mmap.MADV_DONTNEED, lambda: self.space.discard(first, count))
            return
        offset = (first - self.area(which).first) * PAGE
        seen = in_kernel(lambda: memory.discard(offset, count * PAGE))
        assert seen == in_model(lambda: self.space.discard(first, count))

    @precondition(lambda self: not _NO_GUARDS)
    @rule(which=number, at=number, length=number, install=st.booleans())
    def guard(self, which: int, at: int, length: int, install: bool) -> None:
        first, count = self.range(which, at, length)
        if not self.ordinary(first, count):
            return
        if install:
            advice = lowlevel.MADV_GUARD_INSTALL
            self.advise(first, count, advice, lambda: self.space.guard(first, count))
        else:
            advice = lowlevel.MADV_GUARD_REMOVE
            self.advise(first, count, advice, lambda: self.space.unguard(first, count))

    @rule(which=number, at=number, length=number, prot=protections)
    def protect(self, which: int, at: int, length: int, prot: str) -> None:
        first, count = self.range(which, at, length)
        if self.space.covered(first, count):
            self.arena.protect(first, count, prot)
            self.space.protect(first, count, prot)

    @rule(which=number, at=number, length=number, on=st.booleans())
    def mlock(self, which: int, at: int, length: int, on: bool) -> None:
        first, count = self.range(which, at, length)
        if self.ordinary(first, count):
            if on:
                self.arena.lock(first, count)
                self.space.lock(first, count)
            else:
                self.arena.unlock(first, count)
                self.space.unlock(first, count)

    @rule(which=number, at=number, length=number, prot=protections, kind=kinds)
    def map(self, which: int, at: int, length: int, prot: str, kind: str) -> None:
        first, count = self.range(which, at, length)
        if self.foreign(which):
            self.arena.map(first, count, prot, kind)
            self.space.map(first, count, prot, anonymous=kind == "anonymous")

    @rule(which=number, at=number, length=number)
    def unmap(self, which: int, at: int, length: int) -> None:
        first, count = self.range(which, at, length)
        if self.foreign(which):
            self.arena.unmap(first, count)
            self.space.unmap(first, count)

    @rule(which=number)
    def refresh(self, which: int) -> None:
        """Map an area anew: the other rules leave less and less of it to move in."""
        area = self.area(which)
        if area.memory is None:
            self.arena.map(area.first, area.count, "rw")
            self.space.map(area.first, area.count)
        else:
            self.arena.unlock(area.first, area.count)
            self.space.unlock(area.first, area.count)
            self.arena.protect(area.first, area.count, "rw")
            self.space.protect(area.first, area.count, "rw")

    @rule(which=number, at=number, length=number, on=st.booleans())
    def elsewhere(self, which: int, at: int, length: int, on: bool) -> None:
        """Let somebody else's userfaultfd have a range, or take it back."""
        first, count = self.range(which, at, length)
        wanted = Registration.NONE if on else Registration.OTHER
        vmas = self.space.vmas(first, count)
        if not self.ordinary(first, count):
            return
        if any(vma.mapping.registered is not wanted for vma in vmas):
            return
        if on:
            self.arena.register_elsewhere(first, count)
            self.space.register_elsewhere(first, count)
        else:
            self.arena.unregister(first, count)
            self.space.unregister(first, count)

    @rule(which=number, at=number, length=number)
    def poison(self, which: int, at: int, length: int) -> None:
        first, count = self.range(which, at, length)
        vmas = self.space.vmas(first, count)
        if len(vmas) != 1 or vmas[0].length < count or self.has(first, count, *Kind):
            return
        if vmas[0].mapping.registered is Registration.OTHER:
            self.arena.poison(first, count)
            self.space.poison(first, count)

    # Processes.

    @precondition(lambda self: len(self.children) < 2)
    @rule()
    def fork(self) -> None:
        held = [
            (page, entry.token)
            for page, entry in self.space.pages.items()
            if self.space.inherited(page)
            and not entry.swapped
            and self.touchable(page, write=False)
        ]
        self.arena.fork(held)
        self.children.append(self.space.fork())

    @precondition(lambda self: self.children)
    @rule(which=number)
    def end_child(self, which: int) -> None:
        at = which % len(self.children)
        self.arena.children.pop(at).end()
        self.space.end_child(self.children.pop(at))

    # What has to hold after every step.

    @invariant()
    def same(self) -> None:
        self.same_mappings()
        self.same_pages()
        self.same_contents()

    def same_mappings(self) -> None:
        for area, seen in zip(self.arena.areas, self.arena.seen_vmas(), strict=True):
            # What adjoins an area is never one mapping with it, or is not the machine's.
            bounds = {area.first, area.first + area.count}
            bounds.update(bound for start, end, _ in seen for bound in (start, end))
            self.space.adopt_bounds(area.first, area.count, bounds)
            expected = self.space.vmas(area.first, area.count)
            assert seen == [expected_vma(vma) for vma in expected]

    def same_pages(self) -> None:
        for area in self.arena.areas:
            self.space.adopt_states(area.first, self.arena.seen_states(area))

    def same_contents(self) -> None:
        for area in self.arena.areas:
            there, tokens = [], []
            for offset in range(area.count):
                entry = self.space.pages.get(area.first + offset)
                if entry is None or entry.swapped:
                    continue
                if self.touchable(area.first + offset, write=False):
                    there.append(offset)
                    tokens.append(entry.token)
            words = area.words()[there, :: self.STRIDE]
            assert (words == np.array(tokens, np.uint64)[:, None]).all()

    def teardown(self) -> None:
        try:
            for area in self.arena.areas:
                words = area.words()
                for page in range(area.first, area.first + area.count):
                    if self.touchable(page, write=False):
                        entry = self.space.pages.get(page)
                        token = 0 if entry is None else entry.token
                        assert (words[page - area.first] == token).all()
        finally:
            self.arena.close()

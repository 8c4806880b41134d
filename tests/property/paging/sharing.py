"""A region that shares a budget with others, which want memory at any moment, or return some."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from model.region import Words
from pagemove import PAGE_SIZE, Budget, PagedMemory
from support.paging import Fault, contents_of, load, paged, store

from .machine import NUMBERS, Machine, number

OTHERS = 2
#: Blocks of the budget: four of each region, up to more than all have.
totals = st.sampled_from([12, 13, 16, 24, 60])


class SharingMachine(Machine):
    """The region of `Machine`, one that is read, and one with smaller blocks that is changed."""

    def open(self, mode: str, limit: int | None, faults: list[Fault], ahead: bool) -> None:
        if not hasattr(self, "budget"):
            self.budget = Budget((limit or 40) * self.BLOCK + OTHERS * 4 * self.BLOCK)
            self.others = [self.another("r", self.BLOCK), self.another("r+", self.BLOCK // 2)]
        super().open(mode, None, faults, ahead)

    def another(self, mode: str, block: int) -> tuple[PagedMemory, Words]:
        """Open one that shares the budget: what it is, and what is to be in it."""
        path = self.folder / mode
        path.write_bytes(contents_of(self.nwords * 8, 1))
        how: dict[str, Any] = {"block_size": max(block, PAGE_SIZE), "resident_limit": self.budget}
        memory = self.stack.enter_context(paged(path, mode, **how))
        return memory, np.fromfile(path, np.uint64)

    def resident_limit(self) -> Any:
        return self.budget

    @rule(which=st.integers(0, OTHERS - 1), at=number, times=st.integers(1, 12))
    def use_another(self, which: int, at: int, times: int) -> None:
        """Touch blocks of another one, and change them where that is allowed."""
        memory, copy = self.others[which]
        for step in range(times):
            first = (at * self.nwords // NUMBERS + step * self.BLOCK // 8) % self.nwords
            found = np.frombuffer(load(memory.address + 8 * first, 8), np.uint64)
            assert found[0] == copy[first]
            if memory.mode == "r+":
                copy[first] = self.values(1)[0]
                store(memory.address + 8 * first, copy[first].tobytes())

    @rule(total=totals)
    def resize(self, total: int) -> None:
        self.budget.resize(total * self.BLOCK, timeout=self.TIMEOUT)
        stats = self.budget.stats()
        assert stats.limit == total * self.BLOCK
        assert stats.leased_nbytes <= stats.limit

    @rule(which=st.integers(0, OTHERS - 1))
    def evict_another(self, which: int) -> None:
        self.others[which][0].evict()

    @invariant()
    def leases_are_within_the_limit(self) -> None:
        if not hasattr(self, "others"):
            return
        stats = self.budget.stats()
        assert stats.leased_nbytes <= stats.limit
        for each in stats.regions:
            assert each.resident_nbytes <= each.leased_nbytes

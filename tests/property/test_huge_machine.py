"""Model and kernel side by side: areas that huge pages fit into."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from model import HUGE

from . import EXAMPLES
from .machine import Machine
from .world import number

pytestmark = [pytest.mark.needs("move", "thp"), pytest.mark.timeout(900)]


class HugeMachine(Machine):
    """The same rules where ranges begin and end at and around the bounds of huge pages.

    Memory may have huge pages only while it is being touched: outside of that khugepaged has
    nothing to do here, which would fill holes and put pages together when it pleases.
    """

    FOREIGN: ClassVar[list[int]] = [2 * HUGE, HUGE + HUGE // 2]
    OWNED: ClassVar[list[int]] = [2 * HUGE]
    WITH_HUGE: ClassVar[bool] = True
    OFFSETS: ClassVar[list[int]] = [0, HUGE, 0, HUGE, 1, HUGE - 1, HUGE + 2, HUGE // 2]
    COUNTS: ClassVar[list[int]] = [HUGE, 1, HUGE, 2, 2 * HUGE, HUGE - 1, HUGE + 1, 3]
    TOUCHED: ClassVar[int] = 2
    LARGE: ClassVar[int] = HUGE
    STRIDE: ClassVar[int] = 64

    def with_huge_pages(self, which: int, touch: Callable[[], None]) -> None:
        area = self.area(which)
        self.allow(area.first, area.count, mmap.MADV_HUGEPAGE)
        try:
            touch()
        finally:
            self.allow(area.first, area.count, mmap.MADV_NOHUGEPAGE)

    def allow(self, first: int, count: int, advice: int) -> None:
        for vma in self.space.vmas(first, count):
            if vma.mapping.movable:
                self.arena.advise(vma.start, vma.length, advice)
        self.space.may_merge(first, count)

    def __init__(self) -> None:
        super().__init__()
        for area in self.arena.areas:
            self.allow(area.first, area.count, mmap.MADV_NOHUGEPAGE)

    @rule(which=number, at=number)
    def write_huge(self, which: int, at: int) -> None:
        self.with_huge_pages(which, lambda: self.write(which, at, 1))

    @rule(which=number, at=number)
    def read_huge(self, which: int, at: int) -> None:
        self.with_huge_pages(which, lambda: self.read(which, at, 1))

    def mapped(self, which: int) -> None:
        area = self.area(which)
        self.allow(area.first, area.count, mmap.MADV_NOHUGEPAGE)

    def preferred(self, pages: list[int]) -> list[int]:
        return [page for page in pages if page % HUGE == 0] or pages

    def index(self, at: int, pages: int) -> int:
        return at if pages == HUGE else self.OFFSETS[at % len(self.OFFSETS)] + at // 16


class TestHugeMachine(HugeMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=EXAMPLES or 40, stateful_step_count=30, deadline=None)

"""Model and kernel side by side: areas that huge pages fit into."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from model import HUGE

from . import EXAMPLES, STEPS
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
        self.allow_huge(which, allowed=True)
        try:
            touch()
        finally:
            self.allow_huge(which, allowed=False)

    def allow_huge(self, which: int, *, allowed: bool) -> None:
        area = self.area(which)
        for vma in self.space.vmas(area.first, area.count):
            if vma.mapping.movable:
                self.arena.allow_huge(vma.start, vma.length, allowed=allowed)
        self.space.may_merge(area.first, area.count)

    @rule(which=number, at=number)
    def write_huge(self, which: int, at: int) -> None:
        self.with_huge_pages(which, lambda: self.write(which, at, 1))

    @rule(which=number, at=number)
    def read_huge(self, which: int, at: int) -> None:
        self.with_huge_pages(which, lambda: self.read(which, at, 1))

    def preferred(self, pages: list[int]) -> list[int]:
        return [page for page in pages if page % HUGE == 0] or pages

    def index(self, at: int, pages: int) -> int:
        return at if pages == HUGE else self.OFFSETS[at % len(self.OFFSETS)] + at // 16


class TestHugeMachine(HugeMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=EXAMPLES or 30, stateful_step_count=STEPS or 30, deadline=None)

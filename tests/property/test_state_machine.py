"""Model and kernel side by side: small pages, three areas, all that can happen to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from model import PAGE, Kind, State
from pagemove import lowlevel
from pagemove.introspect import states_at

from . import EXAMPLES, STEPS
from .machine import Machine
from .outcomes import in_kernel
from .world import number

# A failure is followed by minutes in which Hypothesis looks for the shortest way to it.
pytestmark = [pytest.mark.needs("move"), pytest.mark.timeout(900)]


class SwapMachine(Machine):
    """The same where pages can leave for swap."""

    @rule(which=number, at=number, length=number)
    def page_out(self, which: int, at: int, length: int) -> None:
        first, count = self.range(which, at, length)
        if not self.ordinary(first, count):
            return
        in_kernel(lambda: self.arena.advise(first, count, lowlevel.MADV_PAGEOUT))
        gone = np.flatnonzero(states_at(first * PAGE, count) == State.SWAPPED) + first
        self.space.page_out(int(page) for page in gone if not self.has(int(page), 1, Kind.POISON))


class PlainMachine(Machine):
    """The same on the way the library goes on kernels without defects: nothing is looked at first.

    What the defect spoils needs another thread, so the answers are true here too.
    """

    DEFECTS = 0


class TestMachine(Machine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=EXAMPLES or 80, stateful_step_count=STEPS or 40, deadline=None)


@pytest.mark.needs("swap")
class TestSwapMachine(SwapMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=EXAMPLES or 30, stateful_step_count=STEPS or 40, deadline=None)


class TestPlainMachine(PlainMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=EXAMPLES or 30, stateful_step_count=STEPS or 40, deadline=None)

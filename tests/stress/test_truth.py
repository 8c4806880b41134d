"""The kernel's stale EAGAIN, provoked: every answer of the library is true all the same.

A sibling in madvise(MADV_COLD) changes the source's page-table entries while they are moved. The
kernel then moves a page and denies it (docs/explanation/stale-eagain.md). What is true is told by
the contents, which stay intact.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
import pytest

from pagemove import PAGE_SIZE, Memory
from pagemove._native import remap
from support import child

from .ring import BURST, Ask, Ring, buffers, integers, lies, many, whole
from .siblings import COLD, Sibling, apart, library

pytestmark = [
    pytest.mark.needs("move", "stale_eagain", "two_cpus"),
    pytest.mark.usefixtures("siblings"),
]

# As many wrong answers without the guard make as many calls with it a test of the guard.
_ENOUGH = 3
_SECONDS = 1.6
_BURSTS = 2
# A sibling provokes most if it comes about once a call; how long a call takes differs by form,
# machine and moment, so the tests go through these paces and stay at one while it bites.
_PACES = [30_000, 100_000, 300_000, 1_000_000, 1_000]


@dataclass(frozen=True)
class Form:
    """One way to ask for pages to be moved."""

    ask: Ask
    span: int = 1
    distance: int | None = None
    order: list[int] | None = field(default=None, repr=False)
    zeros: tuple[int, ...] = ()


_SHUFFLED = np.random.default_rng(1).permutation(48).tolist()
_RUNS = np.arange(48).reshape(-1, 8)[::-1].ravel().tolist()
_APART = list(range(0, 400, 50))
_FAR_APART = list(range(0, 800, 100))

FORMS = {
    "integers": Form(integers(0)),
    "integers, holes": Form(integers(1)),
    "buffers": Form(buffers(0)),
    "short run": Form(integers(0), 16),
    "long run": Form(integers(0), 64),
    "long run, holes": Form(integers(1), 64),
    "run with zero pages": Form(integers(0), 20, zeros=(5, 12)),
    "overlap by one page": Form(integers(0), 3, 1),
    "overlap by eight pages": Form(buffers(0), 16, 8),
    "move": Form(whole(False), 32),
    "move, holes": Form(whole(True), 32),
    "move_many, scattered": Form(many(False), 48, order=_SHUFFLED),
    "move_many, far apart": Form(many(False), 400, order=_APART),
    "move_many, farther apart": Form(many(False), 800, order=_FAR_APART),
    "move_many, runs": Form(many(False), 48, order=_RUNS),
    "move_many, holes": Form(many(True), 48, order=_RUNS),
}


def _raw_lies() -> tuple[int, int]:
    calls = wrong = 0
    end = time.monotonic() + 4 * _SECONDS
    with Memory(2 * PAGE_SIZE) as memory, apart() as cpu:
        memoryview(memory)[0] = 1
        with Sibling(COLD, memory.address, 2, cpu=cpu):
            while wrong < _ENOUGH and time.monotonic() < end:
                wrong += library().raw_lies(remap.descriptor(), memory.address, 10_000)
                calls += 10_000
    return wrong, calls


@pytest.fixture(scope="module")
def provoked(siblings: None) -> None:
    """Skip where the kernel, called directly, tells the truth in spite of it all."""
    wrong, calls = child(_raw_lies, deadline=30)
    if not wrong:
        pytest.skip(f"the kernel told the truth in {calls} calls: not affected, or not provoked")


def _without_and_with(form: Form) -> tuple[int, int, int]:
    """Count wrong answers without the guard and with it, to the same number of calls."""
    guarded = remap.defects()
    without = having = calls = 0
    end = time.monotonic() + _SECONDS
    paces = cycle(_PACES)
    ring = Ring(form.span, distance=form.distance, order=form.order, zeros=form.zeros)
    with apart() as cpu, Sibling(COLD, ring.address, ring.pages, cpu=cpu) as sibling:
        while without < _ENOUGH and time.monotonic() < end:
            remap.set_defects(guarded & ~remap.DEFECT_STALE_EAGAIN)
            provoked = lies(ring, form.ask, _BURSTS)
            remap.set_defects(guarded)
            having += lies(ring, form.ask, _BURSTS)
            without += provoked
            calls += _BURSTS * BURST
            if not provoked:
                sibling.pause(next(paces))
    ring.close()
    return without, having, calls


@pytest.mark.parametrize("name", FORMS)
def test_every_answer_is_true(name: str, provoked: None) -> None:
    without, having, calls = child(_without_and_with, FORMS[name], deadline=40)
    assert having == 0, f"{having} wrong answers in {calls} calls, {without} without the guard"


def test_without_the_guard_answers_are_wrong(provoked: None) -> None:
    forms = [FORMS[name] for name in ("integers", "long run", "move_many, scattered")]
    for _ in range(5):
        if any(child(_without_and_with, form, deadline=40)[0] for form in forms):
            return
    pytest.fail("the bare kernel call lies, the library without its guard never did")

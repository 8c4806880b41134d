"""Region and model side by side, in all modes and several block sizes and limits."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pagemove import PAGE_SIZE
from property import EXAMPLES, STEPS
from support import child, paging, wait_for

from .failing import FailingMachine
from .machine import Machine
from .pinning import PinningMachine
from .sharing import SharingMachine
from .unruly import UnrulyMachine

# A failure is followed by minutes in which Hypothesis looks for the shortest way to it.
pytestmark = [pytest.mark.needs("paging"), pytest.mark.timeout(1200)]

_SIZES = {"4 KiB": 4096, "64 KiB": 65536, "16 KiB": 16384, "2 MiB": 2 << 20}
SIZES = {name: size for name, size in _SIZES.items() if size >= PAGE_SIZE}
#: Examples of an ordinary test run.
FEW = {"4 KiB": 40, "64 KiB": 15, "16 KiB": 15, "2 MiB": 2}


#: Of one with a helper process, which takes as long as an interpreter takes to start.
FEWER = {"4 KiB": 6, "64 KiB": 3}


def _few(name: str) -> object:
    """Blocks of one page and of several are enough for the lean suite."""
    lean = SIZES[name] in (PAGE_SIZE, 65536)
    return pytest.param(name, marks=() if lean else pytest.mark.slow)


def _run(machine: type[Machine], size: int, examples: int, steps: int = 40, *phases: Phase) -> None:
    # What is told on standard error is not what this is about, and it is much.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    named = type(machine.__name__, (machine,), {"BLOCK": size, "BLOCKS": 13 if size < 1e6 else 7})
    run_state_machine_as_test(
        named,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS or steps,
            phases=phases or settings.default.phases,
            deadline=None,
            # The child may not be able to write files for a while.
            database=None,
            derandomize="CI" in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.needs("kernel_faults")
@pytest.mark.parametrize("size", [_few(name) for name in SIZES])
@pytest.mark.parametrize("machine", [Machine, FailingMachine])
def test_region_and_model_agree(machine, size):
    paging.build()
    child(_run, machine, SIZES[size], EXAMPLES or FEW[size], deadline=900)


@pytest.mark.parametrize("size", ["4 KiB", "64 KiB"])
def test_region_and_model_agree_on_what_is_pinned(size):
    paging.build()
    child(_run, PinningMachine, SIZES[size], EXAMPLES or FEW[size], deadline=900)


def _written_before_it_is_pinned() -> None:
    machine = PinningMachine()
    machine.start("r+", None, [], False, False)
    machine.write(0, 0)
    wait_for(lambda: not machine.memory.stats().dirty_nbytes)
    machine.pin(0, 0, write=False)
    machine.flush()
    machine.write(0, 0)
    machine.flush()
    assert machine.memory.stats().dirty_nbytes == machine.BLOCK
    machine.teardown()


def test_what_was_written_in_the_background_is_pinned_clean():
    paging.build()
    child(_written_before_it_is_pinned)


@pytest.mark.needs("kernel_faults")
@pytest.mark.parametrize("size", ["64 KiB", pytest.param("4 KiB", marks=pytest.mark.slow)])
def test_region_and_model_agree_while_others_share_a_budget(size):
    paging.build()
    child(_run, SharingMachine, SIZES[size], {"64 KiB": 4, "4 KiB": 40}[size], deadline=900)


@pytest.mark.needs("kernel_faults")
@pytest.mark.parametrize("size", ["4 KiB", pytest.param("64 KiB", marks=pytest.mark.slow)])
def test_region_and_model_agree_over_an_unruly_store(size):
    paging.build()
    # Its steps wait for what is late: a shorter way to a failure would take hours to find.
    examples = -(-EXAMPLES // 5) or FEWER[size]
    child(_run, UnrulyMachine, SIZES[size], examples, 15, Phase.generate, deadline=900)

"""Hand-over and model side by side, over a network that delays, splits, breaks and repeats."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from property import EXAMPLES, STEPS
from support import child

from .handing import HandoverMachine

pytestmark = [pytest.mark.needs("paging", "zstandard"), pytest.mark.timeout(1200)]


def _run(examples: int) -> None:
    run_state_machine_as_test(
        HandoverMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS or 30,
            # Threads and sockets have their own order: a shorter way to a failure is hard to find.
            phases=[Phase.generate],
            deadline=None,
            database=None,
            derandomize="CI" in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_both_sides_and_model_agree() -> None:
    child(_run, EXAMPLES or 40, deadline=900)

"""Every kind of store in trouble for a moment; `unruly.py` says how, and runs it for hours."""

from __future__ import annotations

import time

import pytest

from support import child

from . import SOAK
from .backings import KINDS
from .scenario import Scenario
from .unruly import run

pytestmark = pytest.mark.needs("paging", "fork")

#: Of each kind, one that has small blocks and much trouble.
SEEDS = {
    "file": 23,
    "disk": 23,
    "callable": 23,
    "compressed": 23,
    "compressed file": 2433,
    "layered": 62,
    "layered compressed": 254,
    "fsspec file": 51,
    "fsspec memory": 77,
    "fsspec http": 19,
    "redis": 23,
}


def _scenarios(kind: str) -> list[Scenario]:
    """Draw some: the same in every ordinary run, others whenever there is more time."""
    first = SEEDS[kind] if SOAK <= 1 else time.time_ns() // 1_000_000
    seeds = range(first, first + max(1, int(SOAK)))
    return [Scenario.drawn(seed, kind=kind, seconds=1.2) for seed in seeds]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(name, marks=pytest.mark.needs(*kind.needs)) for name, kind in KINDS.items()],
)
def test_a_store_in_trouble_loses_and_invents_nothing(kind):
    for scenario in _scenarios(kind):
        found = child(run, scenario, deadline=120)
        assert found["loads"] > 0, scenario


@pytest.mark.needs("ksm")
def test_nor_does_a_file_where_the_kernel_merges_pages():
    """A seed with many blocks in memory, for what is merged is what stays."""
    seeds = range(1709, 1709 + max(1, int(SOAK)))
    for seed in seeds:
        scenario = Scenario.drawn(seed, kind="file", seconds=1.5, merging=True)
        found = child(run, scenario, deadline=120)
        assert found["loads"] > 0, scenario

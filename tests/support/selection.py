"""Which tests run: the lean suite of `make test`, or all of `make test-all`.

The lean suite has one instance of every behaviour: of a test with parameters as few sets as show
each value of each parameter, though not of every long list (`MOST_SETS`, and the mark `each`), and
of state machines a few runs. It leaves out the stress tests, what is marked `slow` or to run
`alone`, and what needs a server unless it is marked `lean`. The whole
suite has every pair of values of a product. Without ``--sets``, pytest runs each set of parameters
there is.
"""

from __future__ import annotations

import collections
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

#: What can be given to ``--sets``.
SETS = ("lean", "pairs", "all")
#: What is left out by them, and what runs it.
LEFT_OUT = {
    "lean": (
        "more sets of parameters, stress, servers, works-with, swap, KSM, and slow ones",
        "make test-all",
    ),
    "pairs": ("sets of parameters whose pairs of values run in others", "pytest --sets=all"),
}
#: The libraries of the dependency group works-with, by the names in `needs.py`, and PyTorch.
WORKS_WITH = frozenset(
    (
        "faiss",
        "numba",
        "numexpr",
        "opencv",
        "polars",
        "ray",
        "scipy",
        "skimage",
        "sklearn",
        "statsmodels",
        "tensorstore",
        "torch",
    )
)
#: What changes the machine for all that runs on it, by the names in `needs.py`.
ALONE = frozenset(("swap", "ksm", "hugetlb"))
#: The most sets of parameters of one test in the lean suite, unless it is marked `each`: a list
#: that was written down by hand is one parameter to pytest, however many things differ in it.
MOST_SETS = 5
#: The same of paged memory, where each forks, opens a region and makes a file: a page, 64 KiB and
#: 2 MiB of the block sizes.
MOST_SETS_PAGING = 3
#: What the lean suite does without, by the names in `needs.py`, unless a test is marked `lean`.
NOT_LEAN = frozenset(("redis", "s3", "web", *WORKS_WITH))
#: Examples of Hypothesis, and runs of a state machine, in the lean suite, and the steps of a run.
LEAN_EXAMPLES = 5
LEAN_STEPS = 20


def cover(rows: Sequence[Mapping[str, int]], strength: int) -> list[int]:
    """Choose rows that have every combination of `strength` values that is in any row.

    Greedily, and the first of equals: the same rows give the same choice.

    Parameters
    ----------
    rows : sequence of dict
        What stands for its value, for each parameter.
    strength : int
        1 for each value, 2 for each pair of values.

    Returns
    -------
    list of int
        Indices into `rows`, ascending.
    """
    has = [
        set(itertools.combinations(sorted(row.items()), min(strength, len(row)))) for row in rows
    ]
    times = collections.Counter(itertools.chain.from_iterable(has))
    # Only this row has something: no choice. It leaves little to search.
    chosen = {number for number, some in enumerate(has) if any(times[one] == 1 for one in some)}
    wanted = set(times).difference(*(has[number] for number in chosen))
    while wanted:
        best = max(range(len(rows)), key=lambda number: len(has[number] & wanted))
        chosen.add(best)
        wanted -= has[best]
    return sorted(chosen)


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """Take at most so many, evenly spread, with the first and the last."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[i * (len(numbers) - 1) // (most - 1)] for i in range(most)]


def _values(item: pytest.Item) -> dict[str, int]:
    """Return each parameter's value by its identity: sets that share a value share the object."""
    callspec: Any = getattr(item, "callspec", None)
    return {name: id(value) for name, value in callspec.params.items()} if callspec else {}


def few(usual: int, lean: int) -> int:
    """Return how often a test is to try again what it hopes to catch: in the lean suite, `lean`."""
    return lean if os.environ.get("PAGEMOVE_TEST_LEAN") else usual


def needs(item: pytest.Item) -> list[str]:
    """Return what a test needs of the machine."""
    return [name for mark in item.iter_markers("needs") for name in mark.args]


def in_lean(item: pytest.Item) -> bool:
    """Say whether a test may be in the lean suite, whatever its parameters."""
    if any(item.get_closest_marker(name) for name in ("slow", "alone")):
        return False
    wanted = item.get_closest_marker("lean") is not None or NOT_LEAN.isdisjoint(needs(item))
    return wanted and "stress" not in item.path.parts


def most_sets(item: pytest.Item) -> int:
    """Return how many sets of parameters of a test the lean suite has at most."""
    if item.get_closest_marker("each"):
        return sys.maxsize
    return MOST_SETS_PAGING if "paging" in item.path.parts else MOST_SETS


def choose(items: Sequence[pytest.Item], sets: str) -> set[pytest.Item]:
    """Choose the tests to run from all that were collected; `sets` is one of `SETS`."""
    if sets == "all":
        return set(items)
    tests: dict[str, list[pytest.Item]] = collections.defaultdict(list)
    for item in items:
        if sets == "pairs" or in_lean(item):
            tests[item.nodeid.partition("[")[0]].append(item)
    chosen: set[pytest.Item] = set()
    for variants in tests.values():
        numbers = cover([_values(item) for item in variants], 1 if sets == "lean" else 2)
        if sets == "lean":
            numbers = spread(numbers, most_sets(variants[0]))
        chosen.update(variants[number] for number in numbers)
    return chosen


class Selection:
    """The plugin that leaves tests out, and says at the end which."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._sets: str = config.getoption("sets")
        self._left_out = 0
        if self._sets == "lean":
            os.environ["PAGEMOVE_TEST_LEAN"] = "1"
            os.environ.setdefault("PAGEMOVE_HYPOTHESIS_EXAMPLES", str(LEAN_EXAMPLES))
            os.environ.setdefault("PAGEMOVE_HYPOTHESIS_STEPS", str(LEAN_STEPS))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = choose(items, self._sets)
        left_out = [item for item in items if item not in chosen]
        self._left_out = len(left_out)
        items[:] = [item for item in items if item in chosen]
        if left_out:
            self._config.hook.pytest_deselected(items=left_out)

    def pytest_sessionfinish(self) -> None:
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["left_out"] = self._left_out

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._left_out = max(self._left_out, getattr(node, "workeroutput", {}).get("left_out", 0))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._left_out:
            what, command = LEFT_OUT[self._sets]
            terminalreporter.write_sep("-", "left out")
            terminalreporter.write_line(f"{self._left_out} tests: {what}. For these: {command}")

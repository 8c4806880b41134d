"""A pytest plugin for the guest: tells of every test when it begins and how it ended.

With PAGEMOVE_MATRIX_VARIANTS=4 it leaves of each test with parameters four sets of them, spread
evenly over all: what differs from kernel to kernel is seen by few, and emulation is slow.
"""

from __future__ import annotations

import collections
import os

import pytest

from .guest import say

_MOST = 6000


def pytest_runtest_logstart(nodeid: str, location: object) -> None:
    say("start", test=nodeid)


def _reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)[-_MOST:] if report.longrepr else ""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        say(
            "test",
            test=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            seconds=round(report.duration, 2),
            reason=_reason(report),
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most = int(os.environ.get("PAGEMOVE_MATRIX_VARIANTS", "0"))
    if not most:
        return
    tests: dict[str, list[pytest.Item]] = collections.defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    kept: set[pytest.Item] = set()
    for variants in tests.values():
        count = min(most, len(variants))
        kept.update(variants[i * len(variants) // count] for i in range(count))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]

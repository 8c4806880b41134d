"""The argument of 2014 as data: who claimed what, how it is measured, and what judges it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagemove import features
from pagemove.compare import claims, contention, costs, growth, outcomes
from pagemove.compare.plan import Bench, Plan
from pagemove.compare.verdicts import Finding, Verdict
from pagemove.measuring.endings import Stopped, Unmeasurable
from pagemove.measuring.machine import Machine, machine, pinned

ARCANGELI = "Andrea Arcangeli, 2014"
TORVALDS = "Linus Torvalds, 2014"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Something to be measured, on which one or more scenarios rest.

    Attributes
    ----------
    measure : callable
        Does it. Raises `Unmeasurable` or `OSError` where it cannot be done.
    share : float
        Its part of the whole time.
    """

    measure: Callable[[Bench], Any]
    share: float


MEASUREMENTS: dict[str, Measurement] = {
    "mappings": Measurement(growth.measure, 0.20),
    "outcomes": Measurement(outcomes.measure, 0.05),
    "costs": Measurement(costs.measure, 0.55),
    "faults": Measurement(contention.measure, 0.20),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One claim.

    Attributes
    ----------
    key, title : str
        For programs, and for people.
    claim, who : str
        What was claimed, in other words than the original's, and by whom.
    measured : str
        What is measured to settle it.
    measurement : str
        Key in `MEASUREMENTS`.
    judge : callable
        Computes the finding from what was measured.
    """

    key: str
    title: str
    claim: str
    who: str
    measured: str
    measurement: str
    judge: Callable[[Any], Finding]


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        key="mappings",
        title="Moves mappings, or moves pages",
        claim="mremap moves mappings and the pages only follow; each call allocates a mapping and "
        "removes one, which moving pages does not.",
        who=ARCANGELI,
        measured="mappings of a process after n one-page moves, every other page of an area",
        measurement="mappings",
        judge=growth.judge,
    ),
    Scenario(
        key="outcomes",
        title="Refuses, or wipes",
        claim="mremap removes the mapping at the source and wipes what was at the destination "
        "without a word; moving pages leaves both mappings, and refuses.",
        who=ARCANGELI,
        measured="each case really done, in a process of its own",
        measurement="outcomes",
        judge=outcomes.judge,
    ),
    Scenario(
        key="one-unit",
        title="One page, or one huge page, at a time",
        claim="mremap was never meant for one page, or one huge page, at a time: there moving "
        "the pages is the cheaper way.",
        who=ARCANGELI,
        measured="microseconds for one operation, caches cold, alone and beside a running thread",
        measurement="costs",
        judge=claims.one_unit,
    ),
    Scenario(
        key="detection",
        title="Teaching mremap to detect the cheap case",
        claim="Detecting is not free: mremap gets slower where the case does not apply, and stays "
        "slower than remap_anon_pages where it does.",
        who=ARCANGELI,
        measured="microseconds with and without looking first at every page: the least that must "
        "be looked at (one PAGEMAP_SCAN for each side), and the library's mremap(detect=True)",
        measurement="costs",
        judge=claims.detection,
    ),
    Scenario(
        key="faults",
        title="The lock for reading, or for writing",
        claim="Changing a mapping takes the lock of the address space for writing, moving pages "
        "only for reading: faults of other threads in unrelated memory are held up less.",
        who=f"follows from {ARCANGELI}",
        measured="faults of a second thread while the first moves pages as fast as it can",
        measurement="faults",
        judge=contention.judge,
    ),
    Scenario(
        key="copying",
        title="Moving never beats copying",
        claim="Moving pages never beats copying them.",
        who=TORVALDS,
        measured="microseconds over the number of pages, with cold and with warm caches",
        measurement="costs",
        judge=claims.copying,
    ),
)


@dataclass(frozen=True, slots=True)
class Argument:
    """The whole argument, measured.

    Attributes
    ----------
    machine : Machine
        Where.
    plan : Plan
        How thoroughly.
    measured : dict of str to object
        What each measurement gave: `Mappings`, `Outcomes`, `Costs`, `Contention`. One that could
        not be done is missing.
    findings : tuple of (Scenario, Finding)
        One for each scenario.
    interrupted : bool
        Whether it was interrupted.
    """

    machine: Machine
    plan: Plan
    measured: dict[str, Any]
    findings: tuple[tuple[Scenario, Finding], ...]
    interrupted: bool = False


def judge(scenario: Scenario, measured: dict[str, Any], reasons: dict[str, str]) -> Finding:
    """Compute the finding of one scenario, or say why there is none."""
    if scenario.measurement not in measured:
        return Finding(Verdict.UNMEASURED, reasons[scenario.measurement])
    try:
        return scenario.judge(measured[scenario.measurement])
    except Unmeasurable as reason:
        return Finding(Verdict.UNMEASURED, str(reason))


def run(plan: Plan, progress: Callable[[str, float], None]) -> Argument:
    """Measure everything, on one CPU with another beside it, and judge every claim.

    Ctrl-C ends the measuring: what was measured until then is judged.

    Parameters
    ----------
    plan : Plan
        How thoroughly.
    progress : callable
        Called with what is being done, and the share of everything that is done.
    """
    measured: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    here = machine()
    if not features().remap_anon_pages:
        problem = next(problem for problem in features().problems if problem.needed)
        reason = f"{problem.missing}; `pagemove doctor` says what to do"
        reasons = dict.fromkeys(MEASUREMENTS, reason)
    interrupted = False
    try:
        _measure_all(plan, progress, measured, reasons)
        progress("done", 1.0)
    except KeyboardInterrupt:
        interrupted = True
        for key in MEASUREMENTS.keys() - measured.keys():
            reasons.setdefault(key, "it was interrupted before this was measured")
    findings = tuple((scenario, judge(scenario, measured, reasons)) for scenario in SCENARIOS)
    return Argument(here, plan, measured, findings, interrupted)


def _measure_all(
    plan: Plan,
    progress: Callable[[str, float], None],
    measured: dict[str, Any],
    reasons: dict[str, str],
) -> None:
    """Fill `measured`, except with what there are reasons not to measure, or `reasons`."""
    started, done = time.monotonic(), 0.0
    with pinned() as sibling_cpu:
        for key, measurement in MEASUREMENTS.items():
            if key in reasons:
                continue

            def tick(
                what: str, part: float, at: float = done, of: float = measurement.share
            ) -> None:
                progress(what, at + of * part)

            done += measurement.share
            bench = Bench(plan, sibling_cpu, started + plan.seconds * done, tick)
            try:
                measured[key] = measurement.measure(bench)
            except Stopped as stopped:
                measured[key] = stopped.measured
                raise
            except (Unmeasurable, OSError, MemoryError) as reason:
                reasons[key] = str(reason) or type(reason).__name__

"""Runs benchmarks, prints what they found, and writes it down."""

from __future__ import annotations

import json
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks._measure import (
    FULL,
    QUICK,
    TINY,
    Disturbed,
    Effort,
    Finding,
    Unmeasurable,
    pinned,
)
from pagemove import DestinationMapped
from pagemove.measuring.machine import machine

Measure = Callable[[Effort], list[Finding]]

_EFFORTS = {"full": FULL, "quick": QUICK, "tiny": TINY}
# Where the library is told that the kernel has no stale-EAGAIN defect and it has, it meets it.
_ATTEMPTS = 3
_WIDTH = 150


def _question(measure: Measure) -> str:
    return (sys.modules[measure.__module__].__doc__ or "").strip()


def collect(measure: Measure, effort: Effort) -> list[Finding] | str:
    """Answer one question, or say why it cannot be answered on this machine."""
    for attempt in range(_ATTEMPTS):
        try:
            return measure(effort)
        except Unmeasurable as reason:
            return str(reason)
        except (Disturbed, DestinationMapped):
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError


def _number(value: float, unit: str) -> str:
    return f"{value:.2f} x" if unit == "x" else f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _row(question: str, finding: Finding) -> list[str]:
    figure, unit = finding.figure, finding.unit
    text = _number(figure.median, unit) + ("" if unit == "x" else f" {unit}")
    around = f"{_number(figure.lower, unit)} - {_number(figure.upper, unit)}"
    target = "" if finding.target is None else _number(finding.target, unit)
    bound = target and f"{'≥' if finding.at_least else '≤'} {target}"
    reached = {True: "[green]yes[/]", False: "[bold red]no[/]", None: ""}[finding.reached]
    subject = finding.subject + (f"\n[dim]{finding.note}[/]" if finding.note else "")
    return [question, subject, finding.baseline, text, around, bound, reached]


def _table() -> Table:
    table = Table()
    table.add_column("question", ratio=4)
    table.add_column("measured", ratio=4)
    table.add_column("against", ratio=3)
    for name in ("median", "quartiles", "target", "reached"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _rows(table: Table, question: str, answer: list[Finding] | str) -> None:
    if isinstance(answer, str):
        table.add_row(question, f"not measured: {answer}", end_section=True)
        return
    for number, finding in enumerate(answer):
        last = number + 1 == len(answer)
        table.add_row(*_row("" if number else question, finding), end_section=last)


def _entry(finding: Finding) -> dict[str, object]:
    return {**asdict(finding), "reached": finding.reached}


def run(measures: Sequence[Measure], arguments: Sequence[str] | None = None) -> None:
    """Answer the questions, print one table, and count the figures reached."""
    parser = ArgumentParser(description="Measure pagemove against named baselines.")
    parser.add_argument("--quick", action="store_true", help="fewer measurements")
    parser.add_argument("--tiny", action="store_true", help="only see whether everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    effort = _EFFORTS["tiny" if options.tiny else "quick" if options.quick else "full"]
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    answers: dict[str, list[Finding] | str] = {}
    table = _table()
    with pinned() as cpu:
        for measure in measures:
            question = _question(measure)
            print(f"measuring: {question}", file=sys.stderr, flush=True)
            answers[question] = collect(measure, effort)
            _rows(table, question, answers[question])
    console.print(table)
    console.print(
        f"Linux {platform.release()}, Python {platform.python_version()}; pinned to CPU {cpu}. "
        "Ratios, measured in turn: median and quartiles of all turns. CPU time of all threads, "
        "where they are on that CPU; the time that passes, where they are free to run on any. What "
        "is paged is in the page cache. The defect: stale EAGAIN, for which the library looks "
        "before it moves; the figure of the other kernel is taken on this one."
    )
    found = [one for answer in answers.values() if not isinstance(answer, str) for one in answer]
    judged = [one.reached for one in found if one.reached is not None]
    console.print(f"{sum(judged)} of {len(judged)} figures reached.")
    if options.json:
        _write(options.json, answers)


def _write(path: Path, answers: dict[str, list[Finding] | str]) -> None:
    document = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine()),
        "questions": [
            {"question": question, "not_measured": answer}
            if isinstance(answer, str)
            else {"question": question, "figures": [_entry(finding) for finding in answer]}
            for question, answer in answers.items()
        ],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def run_alone(measure: Measure) -> None:
    """Answer one question: what `python -m benchmarks.NAME` does."""
    run([measure])

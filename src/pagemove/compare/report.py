"""Prints the measured argument: tables on standard output, progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from pagemove.compare import methods
from pagemove.compare.claims import microseconds
from pagemove.compare.contention import Contention
from pagemove.compare.costs import COLD, RIVALS, WARM, Costs, Crossing
from pagemove.compare.growth import Mappings
from pagemove.compare.outcomes import Outcomes
from pagemove.compare.scenarios import Argument, Scenario
from pagemove.compare.verdicts import Finding, Verdict
from pagemove.measuring.timing import Spread

_COLOURS = {
    Verdict.HOLDS: "green",
    Verdict.IN_PART: "yellow",
    Verdict.FAILS: "red",
    Verdict.UNMEASURED: "magenta",
}
_OWN = methods.RemapAnonPages.name
# Of 80 columns, what the bar, the percentage and the time leave.
_DESCRIPTION_WIDTH = 36
_TABLE_SIZES = ("1", "4", "16", "64", "512", "whole range", "one huge page")
_COST_ROWS = (
    methods.RemapAnonPages,
    methods.Mremap,
    methods.MremapKeepSource,
    methods.DetectingMremap,
    methods.DetectingMremapFailing,
    methods.Memcpy,
    methods.MemcpyFresh,
    methods.UffdioCopy,
)
_DETECTION_ROWS = (
    methods.RemapAnonPages,
    methods.DetectingMremap,
    methods.LibraryDetecting,
    methods.MremapOccupied,
    methods.DetectingMremapFailing,
    methods.LibraryDetectingFailing,
)
# "mremap(detect=True)," without a break.
_NAME_WIDTH = 20
_SITUATION_WIDTH = 12
_COMPANY = {False: "alone", True: "beside a running thread"}


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on standard error; return the function that moves it.

    It is drawn only when that function is called: a thread that draws meanwhile would be measured.
    """
    columns = (
        BarColumn(bar_width=28, table_column=Column(min_width=28)),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        # The description gives way, so that the bar keeps its width when the text is long.
        TextColumn(
            "{task.description}",
            table_column=Column(no_wrap=True, overflow="ellipsis", width=_DESCRIPTION_WIDTH),
        ),
    )
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=1.0)

        def step(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share, refresh=True)

        yield step


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=0)
    table.add_column(columns[0], max_width=_NAME_WIDTH)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _text_table(title: str, *columns: str, narrow: int | None = None) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        padding=0,
    )
    table.add_column(columns[0], max_width=narrow)
    for column in columns[1:]:
        table.add_column(column, min_width=max(map(len, column.split())))
    return table


def _cell(ns: Spread | None) -> str:
    """Median, and below it half the distance of the quartiles with as many decimals."""
    if ns is None:
        return "-"
    median = microseconds(ns.median)
    decimals = len(median.partition(".")[2])
    return f"{median}\n[dim]±{(ns.upper - ns.lower) / 2000:.{decimals}f}[/dim]"


def _mappings(data: Mappings) -> Iterator[Table]:
    table = _table(
        f"Scattered one-page moves; at most {data.limit:,} mappings are allowed",
        "method",
        "mappings a move",
        "moves made",
        "mappings added",
        "ended by",
    )
    for growth in data.growths:
        table.add_row(
            growth.method,
            f"{growth.per_move:g}",
            f"{growth.moves:,}",
            f"{growth.points[-1][1]:,}",
            growth.ended_by or "nothing",
        )
    yield table


def _outcomes(data: Outcomes) -> Iterator[Table]:
    names = list(dict.fromkeys(cell.method for cell in data.cells))
    table = _text_table("What happened", "", *names, narrow=_SITUATION_WIDTH)
    for situation in dict.fromkeys(cell.situation for cell in data.cells):
        texts = {cell.method: cell.text for cell in data.cells if cell.situation == situation}
        table.add_row(situation, *(texts.get(name, "-") for name in names))
    yield table


def _headers(costs: Costs) -> dict[str, str]:
    """Return the column heads by size, of the sizes that a table has room for."""
    pages = {cost.size: cost.pages for cost in costs.costs}
    heads = {label: label for label in _TABLE_SIZES if label in pages}
    if "whole range" in heads:
        heads["whole range"] = f"all\n{pages['whole range']:,}"
    return heads


def _cost_table(costs: Costs, rows: tuple[type[methods.Method], ...], *, sibling: bool) -> Table:
    heads = _headers(costs)
    title = f"Microseconds for one operation, caches cold, {_COMPANY[sibling]}; columns: pages"
    table = _table(title, "method", *heads.values())
    for row in rows:
        found = [costs.find(row.name, label, caches=COLD, sibling=sibling) for label in heads]
        table.add_row(row.name, *(_cell(ns) for ns in found))
    return table


def _one_unit(costs: Costs) -> Iterator[Table]:
    for sibling in costs.companies():
        yield _cost_table(costs, _COST_ROWS, sibling=sibling)
    conditions = [(caches, sibling) for sibling in costs.companies() for caches in (COLD, WARM)]
    table = _table(
        f"Where {_OWN} and another change places, in pages",
        "other",
        *(f"{caches}, {_COMPANY[sibling]}" for caches, sibling in conditions),
    )
    for rival in RIVALS:
        cells = []
        for condition in conditions:
            chosen = [
                c for c in costs.crossings if (c.rival, c.caches, c.sibling) == (rival, *condition)
            ]
            cells.append(_crossing(chosen[0]) if chosen else "-")
        table.add_row(rival, *cells)
    yield table


def _crossing(crossing: Crossing) -> str:
    def who(name: str) -> str:
        return "moving" if name == _OWN else "other"

    if not crossing.points:
        return f"{who(crossing.cheaper_below)} always"
    return "\n".join(f"{who(point.cheaper)} from {point.size:,.0f}" for point in crossing.points)


def _detection(costs: Costs) -> Iterator[Table]:
    yield _cost_table(costs, _DETECTION_ROWS, sibling=False)


def _faults(data: Contention) -> Iterator[Table]:
    for pages in data.pages():
        table = _table(
            f"Another thread faults while {pages} page{'s' if pages > 1 else ''} at a time are "
            f"brought over; undisturbed a fault takes {microseconds(data.undisturbed.median)} us",
            "method",
            "us a fault",
            "times undisturbed",
            "operations a ms",
            "us lost to one operation",
        )
        for disturbance in data.disturbances:
            if disturbance.pages == pages:
                quartiles = disturbance.lost.upper - disturbance.lost.lower
                table.add_row(
                    disturbance.method,
                    _cell(disturbance.fault),
                    f"{data.slowdown(disturbance):.2f}",
                    f"{disturbance.operations.median:,.1f}",
                    f"{disturbance.lost.median / 1000:.1f}\n[dim]±{quartiles / 2000:.1f}[/dim]",
                )
        yield table


def _copying(costs: Costs) -> Iterator[Table]:
    conditions = [(caches, sibling) for sibling in costs.companies() for caches in (COLD, WARM)]
    pages = {cost.size: cost.pages for cost in costs.costs}
    for rival in (methods.Memcpy.name, methods.MemcpyFresh.name):
        table = _table(
            f"Moving / {rival}, microseconds; the cheaper one green",
            "pages",
            *(f"{caches}, {_COMPANY[sibling]}" for caches, sibling in conditions),
        )
        for label in costs.labels():
            cells = []
            for caches, sibling in conditions:
                ours = costs.find(_OWN, label, caches=caches, sibling=sibling)
                theirs = costs.find(rival, label, caches=caches, sibling=sibling)
                cells.append(_duel(ours, theirs) if ours and theirs else Text("-"))
            name = f"{pages[label]:,}" if label == "whole range" else label
            table.add_row(name, *cells)
        yield table


def _duel(ours: Spread, theirs: Spread) -> Text:
    moving_wins = ours.median < theirs.median
    return Text.assemble(
        (microseconds(ours.median), "green" if moving_wins else ""),
        " / ",
        (microseconds(theirs.median), "" if moving_wins else "green"),
    )


_TABLES: dict[str, Callable[[Argument], Iterator[Table]]] = {
    "mappings": lambda argument: _mappings(argument.measured["mappings"]),
    "outcomes": lambda argument: _outcomes(argument.measured["outcomes"]),
    "one-unit": lambda argument: _one_unit(argument.measured["costs"]),
    "detection": lambda argument: _detection(argument.measured["costs"]),
    "faults": lambda argument: _faults(argument.measured["faults"]),
    "copying": lambda argument: _copying(argument.measured["costs"]),
}


def _verdict(finding: Finding) -> Text:
    return Text(finding.verdict.value, f"bold {_COLOURS[finding.verdict]}")


def _scenario(argument: Argument, scenario: Scenario, finding: Finding, console: Console) -> None:
    console.print(Rule(scenario.title, align="left"))
    console.print(f"[bold]Claim[/bold] ({escape(scenario.who)}): {escape(scenario.claim)}")
    console.print(f"[bold]Measured:[/bold] {escape(scenario.measured)}.\n")
    if scenario.measurement in argument.measured:
        for table in _TABLES[scenario.key](argument):
            console.print(table)
    console.print(
        Text.assemble(("Verdict: ", "bold"), _verdict(finding), f": {finding.why}"), highlight=False
    )
    console.print()


def _preamble(argument: Argument) -> str:
    here = argument.machine
    where = "threads pinned" if here.pinned else "one CPU, no second thread"
    return (
        f"Linux {here.kernel}, {here.architecture}, {here.cpus} CPUs, {where}; huge pages: "
        f"{here.huge_pages or 'none'}. Interleaved rounds; medians, ± half the distance of the "
        "quartiles."
    )


def _footnotes(costs: Costs, defects: tuple[str, ...]) -> Iterator[str]:
    calls = "; ".join(f"{what}: {call.median:,.0f} ns" for what, call in costs.empty_calls.items())
    yield f"Contained in the costs and not subtracted: {calls}."
    if defects:
        yield (
            f"{_OWN} looks at the source before it moves, because this kernel has known defects: "
            f"{', '.join(defects)}. The look is part of its cost."
        )
    yield (
        f"Cold caches: {costs.chilled_by >> 20} MiB of other memory were read since. Warm ones: "
        "the same was brought over and read just before."
    )
    shares = f"The measuring thread had a CPU for {costs.cpu_share:.0%} of the time"
    if costs.sibling_share:
        shares += f", the running thread beside it for {costs.sibling_share:.0%}"
    if costs.disturbed:
        shares += "; other processes disturbed the measurement: repeat it on a quiet machine"
    yield f"{shares}."
    for reason in costs.left_out:
        yield f"Left out: {reason}."


def show(argument: Argument, console: Console) -> None:
    """Print every scenario with its tables and its verdict, and all verdicts at the end."""
    console.print("[bold]The argument of 2014, measured here and now[/bold]")
    console.print(_preamble(argument), highlight=False)
    console.print()
    for scenario, finding in argument.findings:
        _scenario(argument, scenario, finding, console)
    if "costs" in argument.measured:
        for note in _footnotes(argument.measured["costs"], argument.machine.defects):
            console.print(note, style="dim", highlight=False)
        console.print()
    summary = _text_table("Verdicts", "claim", "whose", "verdict")
    for scenario, finding in argument.findings:
        summary.add_row(scenario.title, scenario.who, _verdict(finding))
    console.print(summary)

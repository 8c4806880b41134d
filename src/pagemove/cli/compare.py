"""`pagemove compare`: the argument of 2014, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pagemove.compare import document, outputs, report, scenarios
from pagemove.compare import plot as plotting
from pagemove.compare.plan import FULL, QUICK


def compare(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes and rounds: seconds, not minutes.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything measured as JSON.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a figure: .png or .svg; needs matplotlib."),
    ] = None,
) -> None:
    """Measure remap_anon_pages against mremap and against copying, and judge the claims of 2014."""
    try:
        if json:
            outputs.check_file(json)
        if plot:
            outputs.check_figure(plot)
    except outputs.UnusableOutput as reason:
        raise typer.BadParameter(str(reason)) from None
    with report.progress_bar() as progress:
        argument = scenarios.run(QUICK if quick else FULL, progress)
    report.show(argument, Console())
    if json:
        document.write(argument, json)
    if plot:
        plotting.draw(argument, plot)

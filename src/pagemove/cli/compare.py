"""`pagemove compare`: the argument of 2014, measured on this machine."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from pagemove.cli.output import Output
from pagemove.compare import document, report, scenarios
from pagemove.compare import plot as plotting
from pagemove.compare.plan import FULL, QUICK
from pagemove.measuring import outputs
from pagemove.stdout import STANDARD_OUTPUT


def compare(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes and rounds: seconds, not minutes.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write everything measured as JSON; - is standard output, with nothing else.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a figure: .png or .svg; needs matplotlib."),
    ] = None,
) -> None:
    """Measure remap_anon_pages against mremap and against copying, and judge the claims of 2014.

    Ctrl-C ends it early: it shows and writes what it has measured, and exits with status 130.
    """
    try:
        outputs.check(json, plot)
    except outputs.UnusableOutput as reason:
        raise typer.BadParameter(str(reason)) from None
    with report.progress_bar() as progress:
        argument = scenarios.run(QUICK if quick else FULL, progress)
    if json != STANDARD_OUTPUT:
        report.show(argument, Output())
    if json:
        document.write(argument, json)
    if plot:
        plotting.draw(argument, plot)
    if argument.interrupted:
        raise typer.Exit(128 + signal.SIGINT)

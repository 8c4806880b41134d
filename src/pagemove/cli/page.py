"""`pagemove page`: paging, tried on the user's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pagemove.compare import outputs
from pagemove.errors import StoreError, UnsupportedError
from pagemove.paging import trial, trial_document, trial_plot, trial_report


def page(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="One that is not empty, or a block device.")
    ],
    limit: Annotated[
        str, typer.Option(metavar="SIZE", help="The most of it that is in memory at any moment.")
    ] = "256MiB",
    block: Annotated[
        str, typer.Option(metavar="SIZE", help="What is read and evicted as one: 4KiB to 2MiB.")
    ] = "64KiB",
    pattern: Annotated[
        trial.Pattern, typer.Option(help="The order in which blocks are touched.")
    ] = trial.Pattern.SEQUENTIAL,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Also write to every byte, what was read from it: the file keeps its contents. "
            "Not while another program writes to it.",
        ),
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long; Ctrl-C ends it early.")] = 10.0,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything measured as JSON.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a figure: .png or .svg; needs matplotlib."),
    ] = None,
) -> None:
    """Page a file under a memory limit, and measure: faults, throughput, hit rate, latency."""
    try:
        if json:
            outputs.check_file(json)
        if plot:
            outputs.check_figure(plot)
        plan, nbytes = trial.planned(file, limit, block, pattern, write=write, seconds=seconds)
    except (ValueError, OSError) as reason:
        raise typer.BadParameter(str(reason)) from None
    try:
        with trial_report.live(plan, nbytes, Console(stderr=True)) as observe:
            outcome = trial.run(plan, observe)
    except (StoreError, UnsupportedError) as reason:
        typer.echo(f"Error: {reason}", err=True)
        raise typer.Exit(1) from None
    trial_report.show(outcome, Console())
    if json:
        trial_document.write(outcome, json)
    if plot:
        trial_plot.draw(outcome, plot)

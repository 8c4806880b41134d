"""`pagemove page`: paging, tried on what the user has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pagemove.cli.output import Output
from pagemove.measuring import outputs
from pagemove.paging import storage_options
from pagemove.paging.sources import Source
from pagemove.stdout import STANDARD_OUTPUT
from pagemove.trial import document, report, trying
from pagemove.trial import plot as plotting


def page(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file or block device; a URL that fsspec opens (s3://bucket/x.npy, https://..., "
            "zip://member::archive.zip); an array in Redis (redis://server:6379/0#NAME).",
        ),
    ],
    limit: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="The most of it that is in memory at any moment: 256MiB, 1.5g, 100kB; g is GiB.",
        ),
    ] = "256MiB",
    block: Annotated[
        str, typer.Option(metavar="SIZE", help="What is read and evicted as one: 4KiB to 2MiB.")
    ] = "64KiB",
    pattern: Annotated[
        trying.Pattern, typer.Option(help="The order in which blocks are touched.")
    ] = trying.Pattern.SEQUENTIAL,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Also write every byte back as it was read: the file, or the array in Redis, "
            "keeps its contents. Not while another program writes to it.",
        ),
    ] = False,
    seconds: Annotated[
        float,
        typer.Option(
            min=trying.FEWEST_SECONDS,
            max=trying.MOST_SECONDS,
            help="How long; Ctrl-C ends it early.",
        ),
    ] = 10.0,
    storage_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="For what opens a URL, as often as needed: endpoint_url=..., anon=true. A VALUE "
            "that is JSON counts as that, any other as text.",
        ),
    ] = None,
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
    """Page a file, an object or an array in Redis under a memory limit, and measure.

    What is measured: faults, throughput, hit rate, latency.
    """
    try:
        outputs.check(json, plot)
        options = storage_options.parsed(storage_option or ())
        named = Source(source, options, "--storage-option")
        plan, nbytes = trying.planned(named, limit, block, pattern, write=write, seconds=seconds)
    # A TypeError: an option that what opens the URL does not know.
    except (ImportError, OSError, TypeError, ValueError) as reason:
        raise typer.BadParameter(str(reason)) from None
    try:
        with report.live(plan, nbytes, Console(stderr=True)) as observe:
            outcome = trying.run(plan, observe)
    # A limit of the process that a region does not fit into is an OSError or a MemoryError.
    except (OSError, MemoryError) as reason:
        typer.echo(f"Error: {reason}", err=True)
        raise typer.Exit(1) from None
    if json != STANDARD_OUTPUT:
        report.show(outcome, Output())
    if json:
        document.write(outcome, json)
    if plot:
        plotting.draw(outcome, plot)

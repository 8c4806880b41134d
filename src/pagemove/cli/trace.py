"""`pagemove trace`: the events of a program that hangs, or was killed, for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagemove.paging.trace import convert


def trace(
    ring: Annotated[Path, typer.Argument(help="What PAGEMOVE_TRACE=FILE writes to: FILE.ring.")],
    target: Annotated[
        Path | None, typer.Argument(help="The trace; by default RING without .ring.")
    ] = None,
) -> None:
    """Make a trace for https://ui.perfetto.dev of a file of events.

    A program that exits normally writes the trace itself. Use this for one that hangs, or was
    killed.
    """
    if target is None:
        if ring.suffix != ".ring":
            raise typer.BadParameter(f"{ring} does not end with .ring: name the file to write")
        target = ring.with_suffix("")
    try:
        count = convert(ring, target)
    except (OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{target}: {count} events")

"""The commands of `pagemove`, one module a command.

A command's module is imported when the command is asked for: `pagemove doctor` does not wait for
what `pagemove compare` needs.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pagemove._version import __version__
from pagemove.errors import KernelFaultsWarning

_COMMANDS = ("doctor", "compare", "page", "trace")


class _Commands(TyperGroup):
    """Finds command NAME as the function NAME of the module pagemove.cli.NAME."""

    # The types of these are click's, which some releases of typer bring along under another name.
    def list_commands(self, ctx: Any) -> list[str]:
        """List the names, in the order of the help text."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the module of a command and make the command of its function."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"pagemove.cli.{cmd_name}")
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(single)


app = typer.Typer(cls=_Commands, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pagemove {__version__}")
        raise typer.Exit


@app.callback()
def _pagemove(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Move pages of memory between mappings, without copying, and page in user space with that."""
    # No command makes the system calls that it warns of; doctor names what is missing for these.
    warnings.simplefilter("ignore", KernelFaultsWarning)

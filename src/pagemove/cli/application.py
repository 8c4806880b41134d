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

_COMMANDS = ("doctor", "compare", "page", "run", "trace")


class _Commands(TyperGroup):
    """Finds command NAME as the function NAME of the module pagemove.cli.NAME."""

    # The types of these are click's, which some releases of typer bring along under another name.
    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Take the name of a shell after the options of completion, which typer takes for flags."""
        option, _, shell = " ".join(args[:2]).replace("=", " ", 1).partition(" ")
        if option in _COMPLETION and shell and not shell.startswith("-"):
            _complete(ctx, option, shell)
        return super().parse_args(ctx, args)

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


_COMPLETION = ("--show-completion", "--install-completion")


def _complete(ctx: Any, option: str, shell: str) -> None:
    # What typer's own options call; it has no types that are meant for others.
    completion: Any = importlib.import_module("typer.completion")
    known = [each.value for each in completion.Shells]
    if shell not in known:
        ctx.fail(f"{option} {shell}: not a shell that is known here ({', '.join(known)})")
    if option == "--show-completion":
        variable = "_PAGEMOVE_COMPLETE"
        script = completion.get_completion_script(
            prog_name="pagemove", complete_var=variable, shell=shell
        )
        typer.echo(script)
    else:
        _, path = completion.install(shell=shell, prog_name="pagemove")
        typer.echo(f"{shell} completion installed in {path}: start the terminal anew")
    ctx.exit()


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

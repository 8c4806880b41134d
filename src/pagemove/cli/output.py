"""Tables on standard output, as far as somebody reads it."""

from __future__ import annotations

from rich.console import Console

from pagemove import stdout


class Output(Console):
    """Prints on standard output; what its reader has not waited for is dropped.

    The exit status stays that of the command: what it found out, or whether its files are written.
    """

    def on_broken_pipe(self) -> None:
        """Print no more."""
        self.quiet = True
        stdout.discard()

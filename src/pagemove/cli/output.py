"""Tables on standard output, as long as a reader is there."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pagemove import stdout


class Output(Console):
    """Prints on standard output; what its reader has not waited for is dropped.

    The exit status stays that of the command: what it found out, or whether its files are written.
    """

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print; end the command where that fails for another reason than a reader that is gone."""
        try:
            super().print(*args, **kwargs)
        except OSError as error:
            stdout.end(error)

    def on_broken_pipe(self) -> None:
        """Print no more."""
        self.quiet = True
        stdout.discard()

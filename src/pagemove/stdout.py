"""Standard output, until its reader has gone."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

#: Stands for standard output where a file can be named; it then has nothing else.
STANDARD_OUTPUT = Path("-")


def write(text: str, path: Path) -> None:
    """Write text to a file, or to standard output until its reader has gone."""
    if path != STANDARD_OUTPUT:
        path.write_text(text, encoding="utf-8")
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard()
    except OSError as error:
        end(error)


def end(error: OSError) -> NoReturn:
    """End the command because standard output does not take what is written: a disk is full."""
    discard()
    sys.exit(f"pagemove: standard output: {error.strerror}")


def discard() -> None:
    """Let standard output go nowhere, because its reader is gone: `head` has seen enough.

    What is in its buffer would be an error at exit.
    """
    # Not /dev/null: containers may have no /dev.
    nowhere = os.memfd_create("discarded")
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)

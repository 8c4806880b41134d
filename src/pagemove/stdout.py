"""Standard output, as far as somebody reads it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Stands for standard output where a file can be named; it then has nothing else.
STANDARD_OUTPUT = Path("-")


def write(text: str, path: Path) -> None:
    """Write text to a file, or to standard output as far as somebody reads it."""
    if path != STANDARD_OUTPUT:
        path.write_text(text, encoding="utf-8")
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard()


def discard() -> None:
    """Let standard output go nowhere, because its reader is gone: `head` has seen enough.

    What is in its buffer would be an error at exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)

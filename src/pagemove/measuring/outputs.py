"""Files that are to be written after minutes of measuring: refused before, where they cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from pagemove.stdout import STANDARD_OUTPUT

_FIGURES = (".png", ".svg")


class UnusableOutput(ValueError):  # noqa: N818 (an argument, not a failure)
    """A file of that name cannot be written, with the reason and the remedy."""


def check_file(path: Path) -> None:
    """Raise `UnusableOutput` unless a file can be written there."""
    if path == STANDARD_OUTPUT:
        return
    folder = path.parent
    if path.is_dir():
        raise UnusableOutput(f"{path} is a directory: name a file")
    if not folder.is_dir():
        raise UnusableOutput(f"there is no directory {folder}: create it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UnusableOutput(f"{path} may not be written: choose another place")


def check_figure(path: Path) -> None:
    """Raise `UnusableOutput` unless a figure can be drawn into that file."""
    if path.suffix.lower() not in _FIGURES:
        raise UnusableOutput(f"{path} must end in {' or '.join(_FIGURES)}")
    check_file(path)
    try:
        import matplotlib  # noqa: F401 (an extra, and slow to import)
    except ImportError:
        raise UnusableOutput(
            "drawing needs matplotlib: install it with  pip install 'pagemove[plot]'"
        ) from None


def check(json: Path | None, figure: Path | None) -> None:
    """Raise `UnusableOutput` for what is wanted and cannot be written."""
    if json:
        check_file(json)
    if figure:
        check_figure(figure)

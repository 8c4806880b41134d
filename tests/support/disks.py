"""File systems of their own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(directory: Path, kind: str, options: str = "defaults") -> Iterator[Path]:
    """Mount a new file system of some kind, as long as the context lasts."""
    directory.mkdir()
    command = ["mount", "-t", kind, "-o", options, "none", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a {kind}: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def small_disk(directory: Path, nbytes: int) -> contextlib.AbstractContextManager[Path]:
    """Mount a file system that is full when it has so many bytes."""
    return mounted(directory, "tmpfs", f"size={nbytes}")

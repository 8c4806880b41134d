"""Descriptors: those that are left open, and those of the pager's own tables."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def no_leak() -> Iterator[None]:
    """Fail a test after which descriptors are left; those of connections may take a moment.

    Their other ends may be in this process, and libraries close them when they come to it: also
    those of an earlier test, so that there may be fewer than before.
    """
    before = _descriptors()
    yield
    limit = time.monotonic() + 5
    while _descriptors() - before and time.monotonic() < limit:
        gc.collect()
        time.sleep(0.01)
    assert not _descriptors() - before


def files_in(folder: Path) -> dict[int, Path]:
    """Find the files of a folder that this process has in any of its threads' tables.

    By inode, the way to each.
    """
    found = {}
    for each in Path("/proc/self/task").glob("*/fd/*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(each).startswith(f"{folder}/"):
                found[each.stat().st_ino] = each
    return found


def _descriptors() -> Counter[str]:
    """Count open descriptors by what they are, sockets without their names."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[os.readlink(f"/proc/self/fd/{name}").partition(":")[0]] += 1
    return found

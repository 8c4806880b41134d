"""Pages that the kernel refuses to copy or to move: memory that has run out, pages that are pinned.

The pager itself counts them (`pagemove._native.pager.set_trouble`), for all regions of a process.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from pagemove._native import pager

COPY, MOVE_IN, MOVE_OUT = range(3)
WAYS = {"copy": COPY, "move in": MOVE_IN, "move out": MOVE_OUT}
FOREVER = 2**62


@contextlib.contextmanager
def refused(
    *ways: int, code: int = errno.ENOMEM, first: int = 0, count: int = FOREVER, period: int = 0
) -> Iterator[None]:
    """Let pages fail from now to the end of the block.

    Parameters
    ----------
    ways
        `COPY`, `MOVE_IN` and `MOVE_OUT`, each counted by itself.
    code
        What each fails with.
    first, count, period
        Of every `period` pages (0: of all) those from `first` on, so many.
    """
    for way in ways:
        pager.set_trouble(way, first, count, period, code)
    try:
        yield
    finally:
        for way in ways:
            pager.set_trouble(way)

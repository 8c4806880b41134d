"""Registration with the userfaultfd of the process, which makes memory a legal destination."""

from __future__ import annotations

import errno
import math
import time

from pagemove import lowlevel
from pagemove._native import remap

#: The errno for a descriptor that the program has closed, or replaced by another.
CLOSED = (errno.EBADF, errno.ENOTTY)

# When the descriptor was last opened anew, and for how many seconds the old one may linger.
_reopened = -math.inf
_LINGER = 1.0
_MOST_RETRIES = 100


def reopen() -> None:
    """Open the descriptor again if the program has closed it, or replaced it by another."""
    global _reopened
    remap.reopen()
    _reopened = time.monotonic()


def register(address: int, length: int) -> None:
    """Make a range a legal destination, leaving its faults alone: write-protect mode only.

    `OSError` as UFFDIO_REGISTER; EBUSY: it is registered with another userfaultfd.
    """
    retries = 0
    while True:
        try:
            lowlevel.register(remap.descriptor(), address, length, lowlevel.UFFDIO_REGISTER_MODE_WP)
            return
        except OSError as error:
            # A descriptor that is in order and refused all the same stays refused.
            if error.errno in CLOSED and retries < _MOST_RETRIES:
                retries += 1
                reopen()
            elif error.errno == errno.EBUSY and time.monotonic() < _reopened + _LINGER:
                # A thread inside a call on the closed descriptor keeps its registrations alive.
                time.sleep(0.0005)
            else:
                raise

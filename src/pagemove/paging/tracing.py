"""Whether the pager is to trace: ``PAGEMOVE_TRACE=FILE`` in the environment."""

from __future__ import annotations

import os
import threading

_lock = threading.Lock()
_begun = False


def begin() -> None:
    """Trace from here on if the environment asks for it; it is asked once."""
    global _begun
    if _begun:
        return
    with _lock:
        if _begun:
            return
        _begun = True
        path = os.environ.get("PAGEMOVE_TRACE")
        if path:
            from pagemove.paging import trace  # JSON, and the layout of the file of events

            trace.begin(path)

"""Whether something grows when a function is called again and again."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable

from pagemove import PAGE_SIZE
from pagemove.introspect import count_vmas

#: What leaks every call shows in so many calls; what the interpreter keeps for itself does not.
CALLS = 50
_ATTEMPTS = 4


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _allocated() -> int:
    """Bytes that malloc has given out; 0 with a C library that does not tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def _resident() -> int:
    # Counted page by page. The counters behind statm may lag by dozens of pages for each CPU.
    with open("/proc/self/smaps_rollup", "rb") as rollup:
        return next(
            (int(line.split()[1]) << 10) // PAGE_SIZE for line in rollup if line[:4] == b"Rss:"
        )


def _forget_names() -> None:
    """Empty the method cache, which keeps the names it was asked for."""
    clear = getattr(sys, "_clear_internal_caches", getattr(sys, "_clear_type_cache", None))
    if clear is not None:
        clear()


def _now() -> dict[str, int]:
    gc.collect()
    _forget_names()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings": count_vmas(),
        "resident pages": _resident(),
        "objects": sys.getallocatedblocks(),
        "bytes of malloc": _allocated(),
    }


def growth(function: Callable[[], object]) -> dict[str, int]:
    """Return what grows by three quarters of a unit a call (malloc: 8 bytes), in every attempt.

    Each attempt makes twice the calls of the last, so that what only fills up is told from what is
    lost: free lists, or the method cache of CPython 3.11, which keeps the names it was asked for,
    each string anew, some 400 in 1,000 calls and then no more.
    """
    growing: dict[str, int] = {}
    for attempt in range(_ATTEMPTS):
        calls = CALLS << attempt
        function()
        before = _now()
        for _ in range(calls):
            function()
        after = _now()
        growing = {
            name: after[name] - before[name]
            for name in before
            if after[name] - before[name] >= calls * (8 if name == "bytes of malloc" else 0.75)
        }
        if not growing:
            break
    return growing

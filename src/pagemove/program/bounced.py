"""Files of NumPy where system calls do not reach arrays that are not resident.

The kernel reports faults of user code alone there. So these read and write by way of ordinary
memory, a piece at a time.
"""

from __future__ import annotations

import functools
import importlib
import os
import stat
from typing import Any

import numpy as np

from pagemove._native import arena as native

PIECE = 1 << 20


def install() -> None:
    """Have `numpy.load`, `save`, `savez` and `fromfile` do so, for all of the program."""
    module: Any
    try:
        module = importlib.import_module("numpy.lib._format_impl")
    except ImportError:  # before NumPy 2.3
        module = importlib.import_module("numpy.lib.format")
    # What is no file is read and written by its own methods, in pieces.
    module.isfileobj = _is_no_file
    np.fromfile = _from_file(np.fromfile)


def _is_no_file(file: object) -> bool:
    return False


def _from_file(original: Any) -> Any:
    @functools.wraps(original)
    def fromfile(
        file: Any,
        dtype: Any = float,
        count: int = -1,
        sep: str = "",
        offset: int = 0,
        **options: Any,
    ) -> Any:
        if sep or options or isinstance(file, str | bytes | os.PathLike):
            if sep or options:
                return original(file, dtype, count, sep, offset, **options)
            with open(file, "rb") as opened:
                return fromfile(opened, dtype, count, sep, offset)
        kind = np.dtype(dtype)
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) and count >= 0:
            most = count  # a device, say, which has no size
        else:
            there = status.st_size - file.tell() - offset
            most = max(there, 0) // kind.itemsize if kind.itemsize else 0
        total = most if count < 0 else min(count, most)
        if total * kind.itemsize <= PIECE or kind.hasobject:
            return original(file, kind, count, sep, offset)
        file.seek(offset, os.SEEK_CUR)
        result, done = np.empty(total, kind), 0
        while done < total:
            piece = _ordinary(original, file, kind, min(total - done, PIECE // kind.itemsize or 1))
            if not len(piece):
                break
            result[done : done + len(piece)] = piece
            done += len(piece)
        return result[:done]

    return fromfile


def _ordinary(original: Any, file: Any, kind: Any, count: int) -> Any:
    native.bypass(True)
    try:
        return original(file, kind, count)
    finally:
        native.bypass(False)

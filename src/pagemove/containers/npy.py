"""The header of a .npy file, or of a member of an archive that is one."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from pagemove.containers.layout import Layout
from pagemove.stores.base import Store

_MAGIC = np.lib.format.MAGIC_PREFIX
_MAGIC_NBYTES = np.lib.format.MAGIC_LEN
# Enough for tables with thousands of columns. Parsing takes time and memory by the byte, 20 s and
# 500 MiB for 1 MiB, and time by the square of the depth.
_HEADER_MOST = 128 << 10
_DEEPEST = 64


def read_header(store: Store) -> Layout | None:
    """Read the header of a .npy file; None if there is none."""
    prefix = _head(store, _MAGIC_NBYTES + 4)
    if not prefix.startswith(_MAGIC):
        return None
    try:
        version = np.lib.format.read_magic(io.BytesIO(prefix))
        # The length of what follows has two bytes in version 1, four in the others.
        size = struct.Struct("<H" if version[0] == 1 else "<I")
        start = _MAGIC_NBYTES + size.size
        (length,) = size.unpack(prefix[_MAGIC_NBYTES:start])
        if length > _HEADER_MOST:
            raise ValueError(f"it has {length} bytes, more than the {_HEADER_MOST} that are read")
    except (ValueError, struct.error) as error:
        raise _unreadable(store, error) from None
    text = _head(store, start + length)[start:]
    try:
        shape, fortran, dtype = _parsed(version, size, text)
        if min(shape, default=0) < 0:
            raise ValueError(f"its shape {shape} has a negative dimension")
    # NumPy's parser raises a different exception for every kind of malformed header.
    except Exception as error:
        raise _unreadable(store, error) from None
    check_items(store, dtype)
    return Layout(dtype, shape, fortran and len(shape) > 1, start + length)


def _parsed(
    version: tuple[int, int], size: struct.Struct, text: bytes
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Have NumPy read the text of a header."""
    nesting = np.frombuffer(text, np.uint8)
    opening, closing = np.isin(nesting, list(b"([{")), np.isin(nesting, list(b")]}"))
    if (opening.astype(np.int32) - closing).cumsum().max(initial=0) > _DEEPEST:
        raise ValueError(f"its brackets are nested deeper than {_DEEPEST}")
    reads = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version == (3, 0):
        # NumPy's public functions end with version 2. Version 3 is the same in UTF-8, which can
        # stand in the strings of a version 2 as escapes.
        version, text = (2, 0), text.decode("utf-8").encode("ascii", "backslashreplace")
    if version not in reads:
        raise ValueError(f"version {version} is not known")
    file = io.BytesIO(size.pack(len(text)) + text)
    return reads[version](file, max_header_size=_HEADER_MOST)


def _unreadable(store: Store, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0][:200] or type(error).__name__
    return ValueError(
        f"{store!r} begins like a .npy file, but its header cannot be read: {reason}; if it is "
        "something else, page it with PagedMemory"
    )


def _head(store: Store, nbytes: int) -> bytes:
    head = bytearray(min(nbytes, store.nbytes))
    store.read_into(0, head)
    return bytes(head)


def check_items(store: Store, dtype: np.dtype[Any]) -> None:
    """Refuse items that are Python objects; TypeError."""
    if dtype.hasobject:
        raise TypeError(
            f"{store!r} cannot be paged as {dtype}: Python objects are pickled, and not where an "
            "array could find them; save it with another dtype"
        )

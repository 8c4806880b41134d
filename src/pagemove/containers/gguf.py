"""GGUF: a header of keys, values and tensors, then the tensors, aligned.

The format's own library maps local files and makes an object of each token of a vocabulary, so the
header is parsed here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pagemove.containers import types
from pagemove.containers.layout import Known, Layout, Span, check_apart, check_shape, refused
from pagemove.containers.reading import HEADER_MOST, Reading

_VERSIONS = (2, 3)
_WINDOW = 64 << 10
_DEEPEST = 4
_MOST_AXES = 8
#: Of a value's type, how many bytes; that of a string is 8, that of an array 9.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _U32, _U64 = 8, 9, 4, 10
_PLAIN = {0: "f4", 1: "f2", 24: "i1", 25: "i2", 26: "i4", 27: "i8", 28: "f8"}
_BF16 = 30
#: Of quantised types: items in a block, and bytes that a block has.
_BLOCKS = {
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    29: (256, 56),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}


class _Cursor:
    """Goes through a header; what it reads of it has a limit, what it skips has not."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._window, self._start = b"", 0
        self.at, self._taken = 0, 0
        self.order = "<"

    def take(self, nbytes: int) -> bytes:
        """Return the next bytes."""
        self._taken += nbytes
        if self._taken > HEADER_MOST:
            raise ValueError(
                f"{self._reading.what} has a GGUF header of more than {HEADER_MOST} bytes: it is "
                "damaged, or not such a file"
            )
        inner = self.at - self._start
        if inner < 0 or inner + nbytes > len(self._window):
            left = max(self._reading.nbytes - self.at, 0)
            want = max(nbytes, min(_WINDOW, left))
            self._window = self._reading.read(self.at, want, "the GGUF header")
            self._start, inner = self.at, 0
        self.at += nbytes
        return self._window[inner : inner + nbytes]

    def skip(self, nbytes: int) -> None:
        """Go on without reading."""
        if self.at + nbytes > self._reading.nbytes:
            raise ValueError(
                f"{self._reading.what} has {self._reading.nbytes} bytes, and its GGUF header goes "
                f"on to byte {self.at + nbytes}: it was truncated, or is damaged"
            )
        self.at += nbytes

    def number(self, code: str) -> int:
        """Return the next number."""
        size = struct.calcsize(f"<{code}")
        return int(struct.unpack(self.order + code, self.take(size))[0])

    def text(self) -> str:
        """Return the next string."""
        length = self.number("Q")
        if length > HEADER_MOST:
            self.skip(length)  # which says so, where the file is shorter
        return self.take(length).decode("utf-8", "replace")


def read(reading: Reading) -> Known:
    """Read the header; ValueError where it is not one."""
    what, cursor = reading.what, _Cursor(reading)
    cursor.take(4)
    version = cursor.number("I")
    if version and not version & 0xFFFF:
        cursor.order, version = ">", int.from_bytes(version.to_bytes(4, "big"), "little")
    if version not in _VERSIONS:
        raise ValueError(
            f"{what} is GGUF of version {version}, and {_VERSIONS} are read: convert it with "
            "another llama.cpp, or see whether there is a newer pagemove"
        )
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    alignment = _alignment(cursor, keys, what)
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    # A count alone allocates nothing: each turn reads some of the file.
    for _ in range(tensors):
        name = cursor.text()
        if name in entries:
            raise ValueError(f"{what} has two tensors {name!r}: it is damaged, convert it again")
        axes = cursor.number("I")
        if axes > _MOST_AXES:
            raise ValueError(f"{what}: tensor {name!r} has {axes} axes: it is damaged")
        shape = tuple(cursor.number("Q") for _ in range(axes))
        entries[name] = shape[::-1], cursor.number("I"), cursor.number("Q")
    start = -(-cursor.at // alignment) * alignment
    return _known(reading, cursor.order, start, entries)


def _alignment(cursor: _Cursor, keys: int, what: str) -> int:
    """Skip keys and values, but for the one that says how tensors are aligned."""
    alignment, seen = 32, set()
    for _ in range(keys):
        key, kind = cursor.text(), cursor.number("I")
        if not key or key in seen:
            raise ValueError(f"{what} has the key {key[:80]!r} twice, or without a name: damaged")
        seen.add(key)
        if key == "general.alignment" and kind in (_U32, _U64):
            alignment = cursor.number("I" if kind == _U32 else "Q")
            if not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
                raise ValueError(f"{what} has general.alignment {alignment}: it is damaged")
        else:
            _skip(cursor, kind, what)
    return alignment


def _skip(cursor: _Cursor, kind: int, what: str, depth: int = 0) -> None:
    if kind in _SIZES:
        cursor.skip(_SIZES[kind])
    elif kind == _STRING:
        cursor.skip(cursor.number("Q"))
    elif kind == _ARRAY and depth < _DEEPEST:
        inner, count = cursor.number("I"), cursor.number("Q")
        if inner in _SIZES:
            cursor.skip(_SIZES[inner] * count)
            return
        for _ in range(count):
            _skip(cursor, inner, what, depth + 1)
    else:
        raise ValueError(f"{what} has a value of type {kind} in its GGUF header: it is damaged")


def _known(
    reading: Reading,
    order: str,
    start: int,
    entries: dict[str, tuple[tuple[int, ...], int, int]],
) -> Known:
    found: dict[str, Callable[[], Layout]] = {}
    spans, places = [], []
    for name, (shape, kind, offset) in entries.items():
        tensor = f"{reading.what}: tensor {name!r}"
        described = _described(kind, order, shape, tensor)
        if isinstance(described, str):
            found[name] = refused(ValueError, described)
            continue
        itemsize, sizes, make = described
        nbytes = check_shape(tensor, sizes, itemsize)
        first = start + offset
        if nbytes and first + nbytes > reading.nbytes:
            raise ValueError(
                f"{tensor} ends at byte {first + nbytes}, and the file has {reading.nbytes}: it "
                "was truncated; copy or download it again"
            )
        places.append((first, first + nbytes, name))
        found[name] = partial(_layout, make, sizes, first if nbytes else 0)
        spans.append(Span(first, nbytes, itemsize))
    check_apart(reading.what, places)
    return Known("gguf", reading.what, found, spans)


def _described(
    kind: int, order: str, shape: tuple[int, ...], tensor: str
) -> tuple[int, tuple[int, ...], Callable[[], np.dtype[Any]]] | str:
    """Return bytes an item, the shape and what makes the dtype; or what is wrong with it."""
    if kind in _PLAIN:
        dtype = np.dtype(order + _PLAIN[kind])
        return dtype.itemsize, shape, lambda: dtype
    if kind == _BF16 and order == "<":
        return 2, shape, lambda: types.learned("BF16", tensor)
    if kind not in _BLOCKS:
        return (
            f"{tensor} is of GGML type {kind}, which is not known: open its bytes with open_array "
            "and an offset, or see whether there is a newer pagemove"
        )
    items, nbytes = _BLOCKS[kind]
    if not shape or shape[-1] % items:
        return f"{tensor} has rows that are not whole blocks of {items} items: it is damaged"
    sizes = (*shape[:-1], shape[-1] // items * nbytes)
    return 1, sizes, lambda: np.dtype("u1")


def _layout(make: Callable[[], np.dtype[Any]], shape: tuple[int, ...], offset: int) -> Layout:
    return Layout(make(), shape, fortran=False, offset=offset)

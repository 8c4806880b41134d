"""Safetensors: eight bytes with the length of the header, the header in JSON, the data.

The format's own library reads local files only, so the header is parsed here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pagemove.containers import types
from pagemove.containers.layout import Known, Layout, Span, check_apart, check_shape, refused
from pagemove.containers.reading import Reading

_LENGTH = struct.Struct("<Q")
_PLAIN = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
#: Bits an item, of those that are less than a byte.
_NARROW = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_INDEX_WORD = "weight_map"


def is_one(reading: Reading) -> bool:
    """Whether it begins like one: there is no magic."""
    head = reading.head(9)
    return len(head) == 9 and head[8:] == b"{" and _LENGTH.unpack(head[:8])[0] <= reading.nbytes - 8


def read(reading: Reading) -> Known:
    """Read the header; ValueError where it is not one."""
    what = reading.what
    (length,) = _LENGTH.unpack(reading.read(0, 8, "the length of a safetensors header"))
    text = reading.read(8, length, "the safetensors header")
    header = parsed(text, f"{what}: the safetensors header")
    header.pop("__metadata__", None)
    start = 8 + length
    found: dict[str, Callable[[], Layout]] = {}
    spans, places = [], []
    for name, said in header.items():
        tensor = f"{what}: tensor {name!r}"
        kind, shape, first, end = _entry(tensor, said)
        if start + end > reading.nbytes:
            raise ValueError(
                f"{tensor} ends at byte {start + end}, and the file has {reading.nbytes}: it was "
                "truncated; copy or download it again"
            )
        places.append((start + first, start + end, name))
        if kind in _NARROW:
            found[name] = refused(
                TypeError,
                f"{tensor} is {kind}, whose items are less than a byte: open its bytes with "
                f"open_array(..., dtype='u1', offset={start + first}, shape={end - first})",
            )
            continue
        layout = partial(_layout, tensor, kind, shape, start + first)
        found[name] = layout
        spans.append(Span(start + first, end - first, _itemsize(kind)))
    check_apart(what, places)
    return Known("safetensors", what, found, spans)


def shards(reading: Reading) -> dict[str, str]:
    """Read an index of several files: which of them has a tensor."""
    what = reading.what
    index = parsed(reading.read(0, reading.nbytes, "the index"), f"{what}: the index")
    files = index.get(_INDEX_WORD)
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{what} has no {_INDEX_WORD}: it is not an index of safetensors files")
    for name, file in files.items():
        if not isinstance(file, str) or {"/", "\0"} & {*file} or file in ("", ".", ".."):
            raise ValueError(
                f"{what}: tensor {name!r} is said to be in {file!r}, which is not the name of a "
                "file beside the index"
            )
    return files


def parsed(text: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object; ValueError where it is none, or has a name twice."""
    if not text.lstrip(b" \t\r\n").startswith(b"{"):
        raise ValueError(f"{what} does not begin with '{{': it is not such a file")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_once)  # type: ignore[no-any-return]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be read: {str(error)[:200]}; write it again") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _entry(tensor: str, said: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Check what the header says of a tensor."""
    said = said if isinstance(said, dict) else {}
    kind, shape, span = said.get("dtype"), said.get("shape"), said.get("data_offsets")
    if not (isinstance(kind, str) and _are_sizes(shape) and _are_sizes(span) and len(span) == 2):
        raise ValueError(f"{tensor} has no dtype, shape, data_offsets that can be: write it again")
    bits = _NARROW.get(kind) or 8 * _itemsize(kind)
    if not bits:
        raise ValueError(
            f"{tensor} is of type {kind[:50]!r}, which is not known: open its bytes with "
            "open_array and an offset, or see whether there is a newer pagemove"
        )
    nbytes = check_shape(tensor, tuple(shape), bits)
    first, end = span
    if nbytes % 8 or end - first != nbytes // 8:
        raise ValueError(
            f"{tensor} has {end - first} bytes by its data_offsets, and shape {shape} of {kind} "
            f"takes {nbytes / 8:g}: the header is damaged; write the file again"
        )
    return kind, tuple(shape), first, end


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _itemsize(kind: str) -> int:
    if types.is_learned(kind):
        return types.raw_itemsize(kind)
    return np.dtype(_PLAIN[kind]).itemsize if kind in _PLAIN else 0


def _layout(tensor: str, kind: str, shape: tuple[int, ...], offset: int) -> Layout:
    dtype = types.learned(kind, tensor) if types.is_learned(kind) else np.dtype(_PLAIN[kind])
    return Layout(dtype, shape, fortran=False, offset=offset)

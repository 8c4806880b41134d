"""Values for every kind of parameter: right ones, wrong ones, and the ends of what there is.

Addresses are never random. What may be named is: a playground of `Ground`, whole or in part; what
is certainly unmapped; what is not in user space; and what is no address at all. Lengths either stay
within a playground or are larger than any mapping of this process.
"""

from __future__ import annotations

import array
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from model import PAGE

from .ground import PLAY, Ground

Value = Callable[[Ground], Any]

_KERNEL = 0xFFFF_8000_0000_0000
_EXTREME = [-1, -(2**63), 2**31, 2**63 - 1, 2**63, 2**64 - PAGE, 2**64 - 1, 2**64, 2**200]


def describe(arguments: Iterable[Any]) -> list[str]:
    """Write arguments for people without reading memory, which would change what is tested."""
    return [
        repr(value) if isinstance(value, int | float | str | np.generic) else str(type(value))
        for value in arguments
    ]


def same(*values: Any) -> list[Value]:
    """Return each of some values that are safe to share."""

    def give(value: Any) -> Value:
        return lambda _: value

    return [give(value) for value in values]


def _within(where: str, offset: int, kind: Callable[[int], Any]) -> Value:
    return lambda ground: kind(getattr(ground, where) + offset)


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _array(items: list[int], dtype: str) -> Value:
    return lambda _: np.array(items, dtype)


def _released() -> memoryview:
    view = memoryview(bytearray(PAGE))
    view.release()
    return view


class Liar:
    """Says of itself what it is not."""

    def __index__(self) -> int:
        return "1"  # type: ignore[return-value]

    def __len__(self) -> int:
        return -1

    def __array__(self, *_: object, **__: object) -> Any:
        raise ValueError("no array here")


#: Of no use to anybody.
ODD: list[Value] = [
    *same(None, "x", "", b"x", 1.5, -0.0, math.nan, math.inf, 1j, (), (1,), [], {}, ..., int),
    *same(np.float64(PAGE), np.float64(math.nan), np.bool_(True), np.str_("x")),
    *same(np.datetime64(1, "s"), np.complex64(1)),
    lambda _: object(),
    lambda _: iter([1]),
]

#: Integers that are no addresses of anything.
_NOWHERE: list[Value] = same(1, 0x1000, 0x1001, _KERNEL, _KERNEL + 1, 2**47, *_EXTREME)

UNMAPPED: list[Value] = [*_NOWHERE, *ODD]

#: Where `mremap` must not succeed in putting anything.
UNUSABLE: list[Value] = [
    *same(1, 0x1001, _KERNEL, _KERNEL + 1, *(value for value in _EXTREME if value != 2**31)),
    *ODD,
]

_ADDRESSES: list[Value] = [
    *(
        _within(where, page * PAGE, kind)
        for where in ("foreign", "owned")
        for page in range(4)
        for kind in (int, np.uint64, np.int64)
    ),
    lambda g: g.foreign + 1,
    lambda g: g.owned + PAGE // 2,
    *same(True, np.int8(-1), np.uint8(255), np.int64(-(2**63)), np.uint64(2**64 - 1)),
]

_BUFFERS: list[Value] = [
    lambda g: g.memory,
    lambda g: memoryview(g.memory)[PAGE : 3 * PAGE],
    lambda g: memoryview(g.memory)[: 4 * PAGE],
    lambda g: memoryview(g.memory)[1 : PAGE + 1],
    lambda g: memoryview(g.memory)[:0],
    lambda g: memoryview(g.memory)[::2],
    lambda g: memoryview(g.memory).cast("Q"),
    lambda g: memoryview(g.memory).toreadonly(),
    lambda g: g.memory.asarray(np.float64),
    lambda g: g.memory.asarray(np.uint8, (4, 2 * PAGE)),
    lambda g: g.memory.asarray(np.uint8, (4, 2 * PAGE)).T,
    lambda g: g.memory.asarray(np.uint8, (4, 2 * PAGE))[::-1],
    lambda g: g.memory.asarray(np.uint8, (4, 2 * PAGE))[:, :PAGE],
    lambda g: g.memory.asarray(np.uint8, (2, 0)),
    lambda g: g.array,
    lambda g: g.array[: 2 * PAGE],
    lambda g: g.closed,
    lambda g: g.buffer(g.foreign, PLAY * PAGE),
    lambda g: g.buffer(g.foreign + PAGE, 2 * PAGE),
    lambda g: g.buffer(g.owned, 3 * PAGE),
    lambda g: g.buffer(g.owned + 1, PAGE),
]

_OTHER_BUFFERS: list[Value] = [
    lambda _: bytes(PAGE),
    lambda _: bytearray(PAGE),
    lambda _: bytearray(),
    lambda _: memoryview(b"abc"),
    lambda _: _released(),
    lambda _: array.array("d", [1.0]),
    lambda _: np.zeros(3),
    lambda _: np.zeros(0),
    lambda _: np.array(7),
    lambda _: np.array(7.5),
    lambda _: np.array([None, "x"], object),
    lambda _: np.zeros(3, [("a", "u1"), ("b", object)]),
    lambda _: _read_only(np.zeros(3)),
    lambda _: np.zeros((4, 4))[:, 1],
    lambda _: np.broadcast_to(np.zeros(1), (3,)),
    lambda _: np.ma.masked_array([1, 2], [True, False]),
    lambda _: np.array(["a", "b"]),
    lambda _: Liar(),
]

#: An address or a buffer.
PLACES: list[Value] = [*_ADDRESSES, *_BUFFERS, *_OTHER_BUFFERS, *_NOWHERE, *ODD]
#: Mostly buffers.
BUFFERS: list[Value] = [*_BUFFERS, *_BUFFERS, *_OTHER_BUFFERS, *_ADDRESSES[:4], *ODD]

LENGTHS: list[Value] = [
    *same(*(3 * [PAGE, 2 * PAGE, 4 * PAGE])),
    *same(0, 1, 8, PAGE - 1, PAGE + 1, -PAGE, -1, 2**31, *_EXTREME),
    *same(np.int64(PAGE), np.uint64(2 * PAGE), np.uint64(2**64 - PAGE), np.int16(PAGE), True),
    lambda _: np.array(PAGE),
    lambda _: Liar(),
    *ODD,
]

#: Lengths for calls on what is unmapped: the large ones wrap around, or are in no address space.
SMALL: list[Value] = [*same(0, 1, PAGE, 2 * PAGE, -1, 2**64 - 1, 2**64, 2**200), *ODD]

FLAGS: list[Value] = [*same(0, 0, 0, 1, 1, 1, 2, 3, 4, True, np.int64(1), *_EXTREME), *ODD]

TRUTHS: list[Value] = [*same(False, False, True, True, 0, 2, np.bool_(True)), *ODD]

INDICES: list[Value] = [
    *same([0], [1], [0, 2], [1, 3], [2, 0], [5, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0], [0, 0]),
    *same((0, 1), range(2), [], [-1], [0, -1], [7, 8], [0, 2**40], [2**63], [2**64], [2**200]),
    *same([True, False], [1.0], [math.nan], ["1"], [None], [[0, 1]], [[0], [1, 2]], "01", b"01"),
    *(
        _array([1, 3], dtype)
        for dtype in ("i1", "u1", "i2", "u4", "i8", "u8", ">i8", ">u2", "f8", "c16", "?", "M8[s]")
    ),
    lambda _: np.array([1, 3], object),
    lambda _: np.array([1, 2**200], object),
    lambda _: np.array([2**63, 2**64 - 1], np.uint64),
    lambda _: np.array([-(2**63), 2**63 - 1]),
    lambda _: np.array(["1"]),
    lambda _: np.array([(1, 2)], [("a", "i8"), ("b", "i8")]),
    lambda _: np.array(1),
    lambda _: np.zeros((2, 2), np.int64),
    lambda _: np.zeros(0, np.int64),
    lambda _: np.zeros(0),
    lambda _: np.arange(8)[::2],
    lambda _: np.arange(4)[::-1],
    lambda _: np.broadcast_to(np.int64(1), (2,)),
    lambda _: _read_only(np.array([1, 3])),
    lambda _: np.frombuffer(b"\0" * 17, np.uint8)[1:].view(np.int64),
    lambda _: np.ma.masked_array([1, 3], [True, False]),
    lambda _: np.arange(100_000) % PLAY,
    lambda _: Liar(),
    *ODD,
]

PAGE_SIZES: list[Value] = [
    *same(*(6 * [PAGE]), 2 * PAGE, 4 * PAGE, 0, 1, -PAGE, PAGE + 1, PAGE << 50, *_EXTREME),
    *same(np.int64(PAGE), np.uint16(PAGE), True),
    lambda _: np.array(PAGE),
    lambda _: Liar(),
    *ODD,
]

SIZES: list[Value] = [
    *same(1, PAGE, PAGE + 1, 3 * PAGE, 2**21, 0, -1, 2**46, 2**47, 2**62, *_EXTREME),
    *same(np.int64(PAGE), True),
    lambda _: np.array(PAGE),
    lambda _: Liar(),
    *ODD,
]

SHAPES: list[Value] = [
    *SIZES,
    *same((), (0,), (3, 5), [4, 4], (2, -1), (2**40, 0), (2**40, 2**40), (1,) * 64, (1,) * 65),
    *same((1.5,), (None,), ("x",), (2**200,), {}, np.int64(3)),
    lambda _: np.array([2, 3]),
    lambda _: iter((2, 3)),
]

DTYPES: list[Value] = [
    *same(float, int, bool, "u1", ">f4", "V7", "V0", "S", "U3", "M8[s]", np.uint8, np.float16),
    *same([("a", "i4"), ("b", "f8")], object, "O", "nonsense", str, bytes, complex, ("u1", 3)),
    *same([("a", "i4"), ("b", "O")], np.dtype("c16"), -1, 2**70),
    *ODD,
]

NAMES: list[Value] = [
    *same(
        None, "x", "", "a" * 79, "a" * 80, "a b", "[x]", "\\", "`", "$", "\n", "\0", "é", "\ud800"
    ),
    *ODD,
]

"""Where the items of a view are, and in which blocks of a region."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

#: What the pager takes for a list of blocks: each row is a first block, and how many follow.
Runs = npt.NDArray[np.uint32]

# Of a view with more separate stretches than this, all between its ends is taken.
_MOST_STRETCHES = 1 << 20


class Place(NamedTuple):
    """Where the items of a view are: so many bytes from `start` on, and again further up.

    Attributes
    ----------
    start, nbytes : int
        From the first byte of the lowest item to the last of the highest.
    stretch : int
        Bytes of each part.
    rest : list of (int, int)
        Steps from one part to the next, and how many there are.
    """

    start: int
    nbytes: int
    stretch: int
    rest: list[tuple[int, int]]


def place_of(array: npt.NDArray[Any]) -> Place:
    """Find where the items of an array are."""
    start = array.__array_interface__["data"][0]
    if not array.nbytes:
        return Place(start, 0, 0, [])
    steps = sorted(
        (abs(step), count, step < 0)
        for step, count in zip(array.strides, array.shape, strict=True)
        if count > 1 and step
    )
    start -= sum(step * (count - 1) for step, count, down in steps if down)
    nbytes = array.itemsize + sum(step * (count - 1) for step, count, _ in steps)
    return Place(start, nbytes, array.itemsize, [(step, count) for step, count, _ in steps])


def runs_of(place: Place, base: int, block: int) -> Runs:
    """List the blocks of a region at `base` that a view has a byte of."""
    runs = runs_at(place, np.zeros(1, np.int64), base, block)
    if runs is None:
        runs = _runs(np.array([place.start - base]), place.nbytes, block)
    return runs


def runs_at(
    place: Place, offsets: npt.NDArray[np.signedinteger[Any]], base: int, block: int
) -> Runs | None:
    """List the blocks that a view, moved by each of several offsets in bytes, has a byte of.

    None where there are too many stretches to list.
    """
    if not place.nbytes:
        return np.empty((0, 2), np.uint32)
    stretch, rest = place.stretch, place.rest
    # No block lies between two parts that are less than a block apart.
    while rest and rest[0][0] - stretch < block:
        stretch += rest[0][0] * (rest[0][1] - 1)
        rest = rest[1:]
    parts = math.prod(count for _, count in rest)
    if parts > 1 and parts * len(offsets) > _MOST_STRETCHES:
        return None
    starts = offsets + (place.start - base)
    for step, count in rest:
        starts = np.add.outer(starts, step * np.arange(count)).ravel()
    return _runs(np.sort(starts), stretch, block)


def _runs(starts: npt.NDArray[np.signedinteger[Any]], stretch: int, block: int) -> Runs:
    shift = block.bit_length() - 1
    first, last = starts >> shift, (starts + (stretch - 1)) >> shift
    new = first[1:] > last[:-1] + 1
    begins, ends = first[np.append(True, new)], last[np.append(new, True)]
    return np.stack([begins, ends - begins + 1], axis=1).astype(np.uint32)


class Offsets:
    """The first bytes of the blocks that runs have, to be asked whether one is among them.

    `runs` ascend.
    """

    def __init__(self, runs: Runs, block: int) -> None:
        self._firsts = runs[:, 0].astype(np.int64)
        self._ends = self._firsts + runs[:, 1]
        self._block = block

    def __contains__(self, offset: object) -> bool:
        if not isinstance(offset, int):
            return False
        number = offset // self._block
        at = int(self._firsts.searchsorted(number, "right")) - 1
        return at >= 0 and number < int(self._ends[at])


def array_behind(view: object, verb: str) -> npt.NDArray[Any]:
    """View what has memory as an array; TypeError for what has none of its own.

    `verb` is what cannot be done then.
    """
    if isinstance(view, np.ndarray):
        return view
    buffer: memoryview | None = None
    with contextlib.suppress(TypeError):
        buffer = memoryview(view)  # type: ignore[arg-type]
    if buffer is None and not hasattr(view, "__array__"):
        raise TypeError(
            f"cannot {verb} {type(view).__name__}: it has no buffer; {verb} an array, a "
            "memoryview, or a PagedMemory"
        )
    try:
        if buffer is None and hasattr(view, "__dlpack__"):
            return _lent(view)
        return np.asarray(view if buffer is None else buffer, copy=False)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"cannot {verb} {type(view).__name__}: NumPy cannot view its memory ({error}); {verb} "
            "the arrays it is made of"
        ) from None


def _lent(view: Any) -> npt.NDArray[Any]:
    """View a tensor: those of PyTorch have an ``__array__`` that cannot be asked not to copy."""
    array = np.from_dlpack(view)
    if array.flags.writeable:
        return array
    # DLPack before 1.0 cannot say so, and NumPy then makes a view that is not.
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(_Interface(interface, array))


class _Interface:
    """An array by its description, which keeps its owner."""

    def __init__(self, interface: dict[str, Any], owner: object) -> None:
        self.__array_interface__ = interface
        self._owner = owner

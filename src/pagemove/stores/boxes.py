"""Arrays of several dimensions by ranges of their items, and cut into tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Sizes = tuple[int, ...]


class Box(NamedTuple):
    """Items that follow each other in C order, and are a box of the array.

    Attributes
    ----------
    start, stop : tuple of int
        Its corners.
    first : int
        Which item of the array is its first.
    """

    start: Sizes
    stop: Sizes
    first: int

    @property
    def shape(self) -> Sizes:
        """Lengths along each axis."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))


def boxes(shape: Sizes, first: int, last: int) -> Iterator[Box]:
    """Cut the items from `first` up to `last`, in C order, into boxes that are as large as can be.

    At most two for each axis but one.
    """
    if first < last and not shape:
        yield Box((), (), 0)
    elif first < last:
        yield from _boxes(shape, first, last, (), 0)


def _boxes(shape: Sizes, first: int, last: int, outer: Sizes, begin: int) -> Iterator[Box]:
    inner = math.prod(shape[1:])
    row, rest = divmod(first, inner)
    end, over = divmod(last, inner)
    if row == end or (rest and row + 1 == end and not over):
        # Within one row of what is left.
        yield from _boxes(shape[1:], rest, last - row * inner, (*outer, row), begin + row * inner)
        return
    if rest:
        yield from _boxes(shape[1:], rest, inner, (*outer, row), begin + row * inner)
        row += 1
    if row < end:
        start = (*outer, row, *(0 for _ in shape[1:]))
        stop = (*(index + 1 for index in outer), end, *shape[1:])
        yield Box(start, stop, begin + row * inner)
    if over:
        yield from _boxes(shape[1:], 0, over, (*outer, end), begin + end * inner)


class Part(NamedTuple):
    """What a box and a tile have in common.

    Attributes
    ----------
    tile : tuple of int
        Its numbers along each axis.
    in_box, in_tile : tuple of slice
        Where that is in either.
    """

    tile: Sizes
    in_box: tuple[slice, ...]
    in_tile: tuple[slice, ...]


def parts(box: Box, tile: Sizes) -> Iterator[Part]:
    """Cut a box at the bounds of tiles."""
    ranges = [
        range(start // size, (stop - 1) // size + 1)
        for start, stop, size in zip(box.start, box.stop, tile, strict=True)
    ]
    for numbers in itertools.product(*ranges):
        in_box, in_tile = [], []
        for number, start, stop, size in zip(numbers, box.start, box.stop, tile, strict=True):
            origin = number * size
            low, high = max(start, origin), min(stop, origin + size)
            in_box.append(slice(low - start, high - start))
            in_tile.append(slice(low - origin, high - origin))
        yield Part(numbers, tuple(in_box), tuple(in_tile))


def place_of(tile: Sizes, sizes: Sizes, shape: Sizes) -> tuple[slice, ...]:
    """Return where a tile is in the array; those at its ends are smaller."""
    return tuple(
        slice(number * size, min((number + 1) * size, length))
        for number, size, length in zip(tile, sizes, shape, strict=True)
    )


def tile_of(shape: Sizes, chunks: Sequence[int], itemsize: int, least: int, most: int) -> Sizes:
    """Choose tiles, of whole chunks: rows of chunks as far as these have at most `most` bytes.

    Rows with less than `least` are taken together.
    """
    tile = [min(max(chunk, 1), length) for chunk, length in zip(chunks, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        nbytes = math.prod(tile) * itemsize
        room = (most if axis else least) // max(nbytes, 1)
        tile[axis] = min(tile[axis] * max(room, 1), shape[axis])
        if tile[axis] < shape[axis]:
            break
    return tuple(tile)

"""Rows picked from an array in a region: their blocks are read together, then they are copied."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pagemove._native.pager import Pager
from pagemove.paging import failures
from pagemove.paging.places import (
    Offsets,
    Place,
    Runs,
    array_behind,
    place_of,
    runs_at,
    runs_of,
)
from pagemove.paging.sizes import span

if TYPE_CHECKING:
    from pagemove.paging.blocks import Blocks
    from pagemove.paging.region import PagedMemory

_Array = npt.NDArray[Any]
_Index = npt.NDArray[np.intp]

# Bytes of rows that are copied by way of another copy.
_STEP = 1 << 20

# Items without bytes: NumPy checks what it is asked for, and touches nothing.
_NOTHING = np.dtype([])


def take_from(
    plain: _Array, region: PagedMemory, indices: Any, axis: Any, out: Any, mode: Any
) -> Any:
    """Do what `numpy.ndarray.take` does for an array in a region."""
    rows = _rows(plain, indices, axis, out, mode)
    if not rows.numbers.size or not plain.nbytes:
        return plain.take(indices, axis, out, mode)
    fits = _bring_in(rows, region)
    if fits and rows.is_simple():
        # With "raise", which has been seen to, NumPy would copy `out` first.
        index = rows.numbers.reshape(rows.shape)
        return rows.array.take(index, rows.axis, out, "clip")
    before, after = rows.around()
    target = np.empty((*before, rows.numbers.size, *after), plain.dtype)
    if fits:
        _copy(rows, target)
    else:
        _copy_by_pieces(rows, region, target)
    if out is not None:
        # Which may have another dtype, or order of its items.
        return target.take(np.arange(rows.numbers.size).reshape(rows.shape), len(before), out)
    result = target.reshape((*before, *rows.shape, *after))
    return result if result.ndim else result[()]


def bring_in_rows(plain: _Array, region: PagedMemory, indices: Any, axis: Any, mode: Any) -> None:
    """Read what `numpy.ndarray.take` is about to touch, if there is room for all of it."""
    rows = _rows(plain, indices, axis, None, mode)
    if rows.numbers.size and plain.nbytes:
        _bring_in(rows, region)


def prefetch_rows(plain: _Array, region: PagedMemory, indices: Any, wait: bool) -> None:
    """Read rows by index ahead, the first ones if there is not room for all."""
    rows = _rows(plain, indices, 0, None, "raise")
    if not rows.numbers.size or not plain.nbytes:
        return
    rows = rows._replace(numbers=np.unique(rows.numbers))
    runs = rows.runs(region)
    while runs is None and len(rows.numbers) > 1:
        rows = rows._replace(numbers=rows.numbers[: len(rows.numbers) // 2])
        runs = rows.runs(region)
    if runs is not None:
        read_together(region, runs, wait)


def read_together(region: Blocks, runs: Runs, wait: bool) -> None:
    """Read blocks, the first ones if there is not room for all; `wait` as of `prefetch`."""
    runs = _within(runs, region.gatherable // region.block_size)
    if not len(runs):
        return
    start = int(runs[0, 0]) * region.block_size
    end = min(int(runs[-1].sum()) * region.block_size, region.nbytes)
    with memoryview(region):
        first = failures.next_sequence(region)
        if len(runs) == 1:
            code = Pager.prefetch(region, start, end - start, wait)
        else:
            code = Pager.gather(region, runs.tobytes(), wait)
        if code and region.lost:
            region._throw_lost()
        if wait:
            blocks = Offsets(runs, region.block_size)
            failures.check_read(region, code, first, blocks, region._label)


def read_all(region: Blocks, runs: Runs) -> None:
    """Read blocks, those that there is room for at a time, to learn whether all can be read."""
    while len(runs):
        most = region.gatherable // region.block_size
        read_together(region, runs, wait=True)
        runs = _beyond(runs, most)


def runs_in(region: Blocks, what: Any, length: int | None) -> Runs:
    """List the blocks of a view of a region, or of `length` bytes from each of many offsets on."""
    array = array_behind(what, "prefetch") if not isinstance(what, list | tuple) else np.array(what)
    place = place_of(array)
    if place.nbytes and region.address <= place.start < region.address + region.nbytes:
        if length is not None:
            raise TypeError("a view has a length of its own: prefetch takes one with offsets only")
        return runs_of(place, region.address, region.block_size)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(
            f"prefetch takes offsets, whole numbers of bytes, or a view of {region!r}, not an array"
            f" of {array.dtype} in memory of its own"
        )
    count = 1 if length is None else operator.index(length)
    if not array.size or not count:
        return np.empty((0, 2), np.uint32)
    first, last = int(array.min()), int(array.max())
    span(region.nbytes, first, count)
    span(region.nbytes, last, count)
    one = Place(region.address, count, count, [])
    runs = runs_at(one, array.astype(np.int64).ravel(), region.address, region.block_size)
    assert runs is not None, "each is one part"
    return runs


class _Rows(NamedTuple):
    """What is picked from an array.

    Attributes
    ----------
    array : numpy.ndarray
    numbers : numpy.ndarray
        Of one dimension, and from 0 on.
    axis : int or None
        None: of the items in C order, of an array that does not have them in that order.
    shape : tuple of int
        That the indices had.
    """

    array: _Array
    numbers: _Index
    axis: int | None
    shape: tuple[int, ...]

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the lengths of the axes before the one that is picked from, and after it."""
        if self.axis is None:
            return (), ()
        return self.array.shape[: self.axis], self.array.shape[self.axis + 1 :]

    def _before(self) -> tuple[Any, ...]:
        return (slice(None),) * (self.axis or 0)

    def is_simple(self) -> bool:
        """Return whether `numpy.ndarray.take` would not begin with a copy of the whole array."""
        flags = self.array.flags
        return self.axis is not None and flags.c_contiguous and flags.aligned

    def pick(self) -> _Array:
        """Copy the rows."""
        if self.axis is None:
            return self.array[np.unravel_index(self.numbers, self.array.shape)]
        if self.is_simple():
            return self.array.take(self.numbers, self.axis, mode="clip")
        picked: _Array = self.array[(*self._before(), self.numbers)]
        return picked

    def runs(self, region: PagedMemory) -> Runs | None:
        """List the blocks; None: there are too many parts of rows to list them."""
        array = self.array
        if self.axis is None:
            one = array[(slice(1),) * array.ndim]
            places = np.unravel_index(self.numbers, array.shape)
            steps = zip(places, array.strides, strict=True)
            offsets = np.zeros(len(self.numbers), np.int64)
            for place, step in steps:
                offsets += place * step
        else:
            one = array[(*self._before(), slice(1))]
            offsets = self.numbers * array.strides[self.axis]
        return runs_at(place_of(one), offsets, region.address, region.block_size)


def _rows(plain: _Array, indices: Any, axis: Any, out: Any, mode: Any) -> _Rows:
    """Look at what is asked for; raises what NumPy does, before anything is read."""
    nothing = np.empty(plain.shape, _NOTHING)
    nowhere = np.empty(out.shape, _NOTHING) if isinstance(out, np.ndarray) else out
    nothing.take(indices, axis, nowhere, mode)
    index = np.asarray(indices).astype(np.intp, casting="unsafe", copy=False)
    if plain.ndim and axis is not None:
        axis = operator.index(axis) % plain.ndim
        count = plain.shape[axis]
    else:
        count = plain.size
        if plain.flags.c_contiguous:
            plain, axis = plain.reshape(-1), 0
        else:
            axis = None
    flat = index.ravel()
    if flat.size and count:
        if mode in ("clip", 1):
            flat = flat.clip(0, count - 1)
        elif flat.min() < 0 or flat.max() >= count:
            flat = flat % count
    return _Rows(plain, flat, axis, index.shape)


def _within(runs: Runs, most: int) -> Runs:
    """Leave out what is more than so many blocks."""
    counts = runs[:, 1].astype(np.int64)
    room = most - (counts.cumsum() - counts)
    counts = np.minimum(counts, room)
    return np.stack([runs[:, 0], counts], axis=1)[counts > 0].astype(np.uint32)


def _beyond(runs: Runs, most: int) -> Runs:
    """Leave out the first so many blocks."""
    counts = runs[:, 1].astype(np.int64)
    skipped = np.clip(most - (counts.cumsum() - counts), 0, counts)
    left = np.stack([runs[:, 0] + skipped, counts - skipped], axis=1)
    return left[left[:, 1] > 0].astype(np.uint32)


def _bring_in(rows: _Rows, region: PagedMemory) -> bool:
    """Read the blocks of rows; False, and nothing is read: there is not room for all of them."""
    runs = rows.runs(region)
    if runs is None or int(runs[:, 1].sum()) * region.block_size > region.gatherable:
        return False
    read_together(region, runs, wait=True)
    return True


def _copy(rows: _Rows, target: _Array, places: _Index | None = None) -> None:
    """Copy rows to where they belong: one after the other, or where `places` says."""
    if rows.axis:
        target[...] = rows.pick()
        return
    step = max(1, _STEP // max(1, target.nbytes // len(target)))
    for at in range(0, len(rows.numbers), step):
        some = slice(at, at + step)
        where = some if places is None else places[some]
        target[where] = rows._replace(numbers=rows.numbers[some]).pick()


def _copy_by_pieces(rows: _Rows, region: PagedMemory, target: _Array) -> None:
    """Bring rows in and copy them, as many at a time as there is room for."""
    if rows.axis and _bring_in(rows, region):
        _copy(rows, target)
    elif rows.axis and len(rows.array) > 1:
        half = len(rows.array) // 2
        for part in (slice(half), slice(half, None)):
            _copy_by_pieces(rows._replace(array=rows.array[part]), region, target[part])
    elif rows.axis:
        rest = rows._replace(array=rows.array[0], axis=rows.axis - 1)
        _copy_by_pieces(rest, region, target[0])
    else:
        # In the order of blocks, so that each is read once.
        order = rows.numbers.argsort(kind="stable")
        _copy_sorted(rows._replace(numbers=rows.numbers[order]), region, target, order)


def _copy_sorted(rows: _Rows, region: PagedMemory, target: _Array, places: _Index) -> None:
    index = rows.numbers
    # A row that there is not room for is read as any large copy is, ahead of the reader.
    if index[0] == index[-1] or _bring_in(rows, region):
        _copy(rows, target, places)
        return
    half = len(index) // 2
    for part in (slice(half), slice(half, None)):
        _copy_sorted(rows._replace(numbers=index[part]), region, target, places[part])

"""Blocks that stay while they are used: `pinned`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from pagemove.paging import failures
from pagemove.paging.region import PagedMemory
from pagemove.paging.registry import region_at
from pagemove.paging.sizes import text_of

_View = TypeVar("_View")

# Of a view with more separate stretches than this, all between its ends is pinned.
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


@contextlib.contextmanager
def pinned(view: _View, *, write: bool | None = None) -> Iterator[_View]:
    """Bring the blocks of a view in, and keep them resident while the block of code runs.

    System calls then find them there. Without privileges that is what they need: where nobody
    serves the faults of system calls (`PagedMemory.kernel_faults` is False), ``file.write``,
    ``readinto``, sockets, and whatever ends in them, fail with EFAULT on blocks that are not there.

    Parameters
    ----------
    view : array, memoryview or buffer
        Whose blocks are pinned: any view of a region, strided ones too, of which only blocks with
        an item of the view count; a `PagedMemory` itself; or what has such memory, a tensor for
        instance. Of anything that is not in paged memory nothing needs to be pinned, and nothing
        is.
    write : bool, optional
        Whether system calls may write into it. The blocks then count as changed, and are written
        back later. By default, where the view is writeable; False where it is only to be read saves
        that.

    Yields
    ------
    object
        `view`.

    Raises
    ------
    ValueError
        The blocks do not fit the limit; or `write`, and the region is read-only; or the region is
        closed.
    StoreError
        A block cannot be read.
    TypeError
        `view` has no memory to look at.

    Notes
    -----
    What is pinned by several, or overlaps, stays until the last of them ends. Together they can
    have all of `resident_limit` but four blocks, which the rest of the region needs to be paged
    (eight of huge pages that are writable). `PagedMemory.evict` passes pinned blocks by. `flush`
    writes changed ones, but has them stay as changed as they were, since system calls may change
    them unseen; of what is stored just then it may write a part, and the rest the next time.

    The region cannot be closed meanwhile: BufferError. In a child made by fork it is not there, and
    the end of the block does nothing. A thread that discards pinned memory (MADV_DONTNEED) takes
    it away.

    Pinning costs the reads, and for each block some microseconds.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "numbers.npy")
    ...     np.save(path, np.arange(1_000_000))
    ...     numbers = pagemove.open_array(path, resident_limit="2MiB")
    ...     with open(path.with_name("some"), "wb") as file, pagemove.pinned(numbers[1000:50_000]):
    ...         file.write(numbers[1000:50_000])
    392000
    """
    array = _as_array(view)
    place = _place(array)
    region = region_at(place.start, place.nbytes) if place.nbytes else None
    if region is None:
        yield view
        return
    # What is not NumPy's may say that it is writeable, whatever it was made of.
    by_default = array.flags.writeable and (region.mode != "r" or isinstance(view, np.ndarray))
    writes = by_default if write is None else write
    if writes and region.mode == "r":
        raise ValueError(
            f"{region!r} is read-only, and cannot be pinned to be written: open it with mode 'r+' "
            "or 'c'"
        )
    with memoryview(region):  # which keeps it open
        runs = _runs(place, region.address, region.block_size)
        _pin(region, runs, writes, place)
        try:
            yield view
        finally:
            if not region.inherited:
                region.unpin_blocks(runs.tobytes())


def runs_of(array: npt.NDArray[Any], region: PagedMemory) -> npt.NDArray[np.uint32]:
    """List the blocks of a region that an array in it has a byte of: runs of (first, how many)."""
    place = _place(array)
    if not place.nbytes:
        return np.empty((0, 2), np.uint32)
    return _runs(place, region.address, region.block_size)


def _pin(region: PagedMemory, runs: npt.NDArray[np.uint32], write: bool, place: Place) -> None:
    first = failures.next_sequence(region)
    code = region.pin_blocks(runs.tobytes(), write)
    if code < 0:
        _throw_too_large(region, int(runs[:, 1].sum()))
    if code and region.lost:
        failures.throw_lost(region._label, region.counters()["dirty"])
    start = place.start - region.address
    blocks = range(start - region.block_size + 1, start + place.nbytes)
    failures.check_read(region, code, first, blocks, region._label)


def _throw_too_large(region: PagedMemory, count: int) -> NoReturn:
    wanted, most, limit = count * region.block_size, region.pinnable, region.resident_limit or 0
    already = region.counters()["pinned"]
    others = f", {text_of(already)} are pinned already" if already else ""
    raise ValueError(
        f"cannot pin {text_of(wanted)} of {region._label}: of its limit of {text_of(limit)} at "
        f"most {text_of(most)} can be pinned at a time{others}; raise resident_limit by "
        f"{text_of(already + wanted - most)}, or pin and use a smaller part at a time "
        "(pagemove.save does so, for files)"
    )


def _as_array(view: object) -> npt.NDArray[Any]:
    """View what has memory as an array; TypeError for what has none of its own."""
    if isinstance(view, np.ndarray):
        return view
    buffer: memoryview | None = None
    with contextlib.suppress(TypeError):
        buffer = memoryview(view)  # type: ignore[arg-type]
    if buffer is None and not hasattr(view, "__array__"):
        raise TypeError(
            f"cannot pin {type(view).__name__}: it has no buffer; pin an array, a memoryview, or a "
            "PagedMemory"
        )
    try:
        if buffer is None and hasattr(view, "__dlpack__"):
            return _lent(view)
        return np.asarray(view if buffer is None else buffer, copy=False)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"cannot pin {type(view).__name__}: NumPy cannot view its memory ({error}); pin the "
            "arrays it is made of"
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


def _place(array: npt.NDArray[Any]) -> Place:
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


def _runs(place: Place, base: int, block: int) -> npt.NDArray[np.uint32]:
    """List the blocks that a view has a byte of, as runs of (first, how many)."""
    stretch, rest = place.stretch, place.rest
    # No block lies between two parts that are less than a block apart.
    while rest and rest[0][0] - stretch < block:
        stretch += rest[0][0] * (rest[0][1] - 1)
        rest = rest[1:]
    if math.prod(count for _, count in rest) > _MOST_STRETCHES:
        stretch, rest = place.nbytes, []
    starts = np.array([place.start - base])
    for step, count in rest:
        starts = np.add.outer(starts, step * np.arange(count)).ravel()
    starts.sort()
    first, last = starts // block, (starts + stretch - 1) // block
    new = first[1:] > last[:-1] + 1
    begins, ends = first[np.append(True, new)], last[np.append(new, True)]
    return np.stack([begins, ends - begins + 1], axis=1).astype(np.uint32)

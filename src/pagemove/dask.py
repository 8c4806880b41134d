"""Dask arrays over paged ones: every task opens its part by reference."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import compute
from dask.delayed import delayed

from pagemove.paging.array import PagedArray
from pagemove.paging.create import create_array
from pagemove.paging.open import open_array, region_of
from pagemove.paging.reference import Reference, reference
from pagemove.paging.region import PagedMemory
from pagemove.paging.results import PagedData
from pagemove.paging.tokens import register

if TYPE_CHECKING:
    from typing import Unpack

    from pagemove.paging.options import ModelessOptions

__all__ = ["PagedData", "from_array", "to_store"]


def __dir__() -> list[str]:
    # For completion: what is imported here is left out.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


register()

_CHUNK_NBYTES = 128 << 20
_MOST_CHUNKS = 512
# Of the regions that no task uses any more: how many stay open, and for how long.
_MOST_IDLE = 2
_IDLE_SECONDS = 2.0


def from_array(
    array: npt.NDArray[Any] | Reference, chunks: Any = None, *, name: str | None = None
) -> da.Array:
    """Make a Dask array of a paged one, whose tasks carry references.

    Parameters
    ----------
    array : PagedArray or Reference
        Any view of a paged array that `pagemove.reference` takes.
    chunks : optional
        As for `dask.array.from_array`. By default whole blocks of the region, 128 MiB or more: at
        most 512 chunks. A chunk is a view of paged memory, whose blocks come when a task
        touches them, so it may be larger than the memory of a worker.
    name : str, optional
        Of the array in graphs. By default made of the reference: the same for the same data.

    Returns
    -------
    dask.array.Array
        Its chunks are read-only. Nothing is read.

    Raises
    ------
    ValueError, StoreError
        As `pagemove.reference`.

    Notes
    -----
    A worker opens the store once, with the options of the region that was referred to: its resident
    limit holds in each worker process. It is closed when no task has used it for two seconds.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> import pagemove.dask
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "numbers.npy")
    ...     np.save(path, np.arange(1_000_000))
    ...     numbers = pagemove.dask.from_array(pagemove.open_array(path), chunks=100_000)
    ...     numbers.numblocks, int(numbers.sum().compute())
    ((10,), 499999500000)
    """
    block_size = 65536
    if isinstance(array, Reference):
        found = array
    else:
        found = reference(array)
        block_size = region_of(array).block_size
    if chunks is None:
        chunks = _whole_blocks(found, block_size)
    made: da.Array = da.from_array(  # type: ignore[no-untyped-call]
        _Lazy(found),
        chunks=chunks,
        name=name,
        asarray=False,
        inline_array=True,
        meta=np.empty((0,) * len(found.shape), found.dtype),
    )
    return made


def to_store(
    array: da.Array, path: str | os.PathLike[str], **paging: Unpack[ModelessOptions]
) -> PagedArray:
    """Compute a Dask array into a new ``.npy`` file, whose blocks workers write in parallel.

    Parameters
    ----------
    array : dask.array.Array
        Its shape and dtype have to be known.
    path : str or path-like
        The file to be made, in a file system that all workers see. What was there is replaced.
    **paging
        Of the array that is returned, as for `PagedMemory`.

    Returns
    -------
    PagedArray
        Read-only, of what was written.

    Raises
    ------
    ValueError
        The shape is not known, the items are Python objects, or the name does not end with
        ``.npy``; a chunk has another shape or dtype than the array says.
    OSError
        The file cannot be made or written.

    Notes
    -----
    Each task computes one chunk and writes it where it belongs, and no other task does: nothing is
    locked, and no chunk passes through this process. All is durable when this returns. It is
    written beside `path`, which it replaces in the end: if a task fails, what was there stays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import dask.array as da
    >>> import pagemove.dask
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "squares.npy")
    ...     squares = pagemove.dask.to_store(da.arange(1_000_000, chunks=100_000) ** 2, path)
    ...     int(squares[999_999])
    999998000001
    """
    path = os.path.abspath(os.fspath(path))
    if not path.endswith(".npy"):
        raise ValueError(f"{path} is to be in NumPy's format: its name has to end with .npy")
    if any(math.isnan(size) for size in array.shape):
        raise ValueError(
            f"the shape {array.shape} of the Dask array is not known: call compute_chunk_sizes()"
        )
    # The array may be computed from what is there.
    part = f"{path.removesuffix('.npy')}.{os.getpid()}.part.npy"
    made = create_array(part, array.shape, array.dtype)
    where = Path(part), array.dtype, cast("int", made.offset), array.shape
    del made  # which has the file locked, for itself to write
    try:
        # Workers write through mappings, where a full disk would be SIGBUS.
        with open(part, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        starts = [list(accumulate(sizes, initial=0)) for sizes in array.chunks]
        parts = [
            delayed(_write)(
                block,
                where,
                tuple(start[at] for start, at in zip(starts, index, strict=True)),
                tuple(sizes[at] for sizes, at in zip(array.chunks, index, strict=True)),
            )
            for index, block in np.ndenumerate(array.to_delayed())  # type: ignore[no-untyped-call]
        ]
        compute(parts)  # type: ignore[no-untyped-call]
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
    return open_array(path, **paging)


def _write(
    block: npt.NDArray[Any],
    where: tuple[Path, np.dtype[Any], int, tuple[int, ...]],
    first: tuple[int, ...],
    planned: tuple[int, ...],
) -> None:
    """Write a chunk where its items are in the file, and make that durable."""
    path, dtype, offset, shape = where
    if block.shape != planned or block.dtype != dtype:
        raise ValueError(
            f"the chunk at {first} is {block.dtype} of shape {block.shape}, and its Dask array "
            f"says {dtype} of shape {planned}: give map_blocks and from_delayed what is computed"
        )
    target = np.memmap(path, dtype, "r+", offset, shape)
    target[tuple(slice(at, at + size) for at, size in zip(first, block.shape, strict=True))] = block
    target.flush()


class _Lately:
    """Regions that tasks have used, for the next tasks: open, with the memory that they have.

    Between two tasks nobody has an array of it. Opened anew for each, a region would have to get
    all of its memory from the kernel again, which takes longer than reading what is cached.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[PagedMemory, float] = {}
        self._thread: threading.Thread | None = None

    def keep(self, region: PagedMemory) -> None:
        """Have it stay open for a moment; the one that was used least recently may go for it."""
        with self._lock:
            self._until.pop(region, None)
            self._until[region] = time.monotonic() + _IDLE_SECONDS
            if self._thread is None:
                thread = threading.Thread(target=self._drop, name="pagemove-lately", daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread: it stays until the next
                    thread.start()
                    self._thread = thread
            # Closed when the lock is free.
            dropped = list(self._until)[:-_MOST_IDLE]
            for each in dropped:
                del self._until[each]

    def _drop(self) -> None:
        while (left := self._drop_idle()) is not None:
            time.sleep(left)

    def _drop_idle(self) -> float | None:
        """Return for how long the others may stay; None: there are none."""
        with self._lock:
            now = time.monotonic()
            # They are closed when the lock is free.
            dropped = [each for each, until in self._until.items() if until <= now]
            for each in dropped:
                del self._until[each]
            if not self._until:
                self._thread = None
                return None
            return min(self._until.values()) - now


_lately = _Lately()


def _in_child() -> None:
    global _lately
    # The thread is not here.
    _lately = _Lately()


os.register_at_fork(after_in_child=_in_child)


class _Lazy:
    """What Dask slices: an array that is opened where it is used."""

    def __init__(self, found: Reference) -> None:
        self._reference = found
        self.shape, self.dtype, self.ndim = found.shape, found.dtype, len(found.shape)

    def __getitem__(self, key: Any) -> Any:
        array = self._reference.open()
        if isinstance(array, PagedArray):
            _lately.keep(region_of(array))
        return array[key]

    def __dask_tokenize__(self) -> Any:
        return self._reference.__dask_tokenize__()

    def __reduce__(self) -> Any:
        return _Lazy, (self._reference,)


def _whole_blocks(found: Reference, block_size: int) -> tuple[int, ...]:
    """Cut along the axis with the longest steps, at blocks where there are enough items to."""
    if not found.nbytes or not found.shape:
        return found.shape
    axis = found.longest_axis
    row = found.nbytes // found.shape[axis]
    wanted = max(_CHUNK_NBYTES, found.nbytes // _MOST_CHUNKS)
    together = block_size // math.gcd(row, block_size)
    if together * row > wanted:
        together = 1
    rows = max(-(-wanted // (together * row)), 1) * together
    return tuple(rows if at == axis else size for at, size in enumerate(found.shape))

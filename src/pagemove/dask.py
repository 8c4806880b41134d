"""Dask arrays over paged ones: every task opens its part by reference."""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from pagemove.paging.open import region_of
from pagemove.paging.reference import Reference, reference
from pagemove.paging.tokens import register

register()

_CHUNK_NBYTES = 128 << 20
_MOST_CHUNKS = 512


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
    limit holds in each worker process.

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


class _Lazy:
    """What Dask slices: an array that is opened where it is used."""

    def __init__(self, found: Reference) -> None:
        self._reference = found
        self.shape, self.dtype, self.ndim = found.shape, found.dtype, len(found.shape)

    def __getitem__(self, key: Any) -> Any:
        return self._reference.open()[key]

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

"""Many scattered rows at once: `take` and `prefetch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pagemove.paging import gather
from pagemove.paging.array import PagedArray
from pagemove.paging.behind import region_behind
from pagemove.paging.places import array_behind, runs_of
from pagemove.paging.region import PagedMemory


def take(
    array: npt.ArrayLike,
    indices: npt.ArrayLike,
    axis: int | None = 0,
    *,
    out: npt.NDArray[Any] | None = None,
) -> Any:
    """Copy rows by index, as `numpy.take`; of an array in paged memory many are read at once.

    Where ``array[indices]`` waits for one block after the other, this reads all blocks that the
    rows have a byte of: each once, in the order of the store, neighbours together, and with as many
    reads under way as a disk or the store takes.

    Parameters
    ----------
    array : array_like
        Any; what is not in paged memory goes to `numpy.take`.
    indices : array_like of int
        Of any shape. Negative ones count from the end.
    axis : int or None
        Along which rows are picked: by default the first, where that of `numpy.take` is None, which
        picks from the items in C order.
    out : numpy.ndarray, optional
        Receives the rows. Of the shape of the result.

    Returns
    -------
    numpy.ndarray or scalar
        What `numpy.take` returns. A plain array, also of a `PagedArray`.

    Raises
    ------
    IndexError
        An index is out of range. Then, as for any argument that is wrong, nothing was read.
    StoreError
        A block cannot be read. The first of them ends the call, after `store_timeout` seconds: what
        was read until then stays in memory, and `out` may have a part of the rows.
    ValueError
        The array is closed.

    Notes
    -----
    Rows whose blocks do not fit the limit are read and copied in pieces that take three quarters of
    it, sorted, so that each block is read once. A row that alone is larger is read as it is copied.
    A signal handler that raises (Control-C) ends it between two pieces, or while it waits.

    In memory besides the result: an integer for each index, several times, and 1 MiB of rows if
    they do not fit. An array that is not C-contiguous is not copied whole, as `numpy.take` does,
    but rows are copied twice. If all blocks are there, looking that up costs some tens of
    nanoseconds each.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "table.npy")
    ...     np.save(path, np.arange(1_000_000).reshape(-1, 10))
    ...     table = pagemove.open_array(path, block_size="4KiB", resident_limit="1MiB")
    ...     pagemove.take(table, [99_999, 5, -2])[:, 0]
    array([999990,     50, 999980])
    """
    if isinstance(array, PagedArray):
        return array.take(indices, axis, out)
    if isinstance(array, PagedMemory | memoryview):
        array = np.asarray(array)
    region = region_behind(array)[0] if isinstance(array, np.ndarray) else None
    if region is not None and isinstance(array, np.ndarray):
        plain = array.view(np.ndarray)
        if type(array) is np.ndarray:
            return gather.take_from(plain, region, indices, axis, out, "raise")
        gather.bring_in_rows(plain, region, indices, axis, "raise")
    return np.take(array, indices, axis=axis, out=out)  # type: ignore[arg-type]


def prefetch(view: object, indices: npt.ArrayLike | None = None, *, wait: bool = False) -> None:
    """Read the blocks of a view, or of rows of it, before they are touched.

    Parameters
    ----------
    view : array, memoryview or buffer
        Any view of paged memory, strided ones too, of which only blocks with an item of the view
        are read; or a `PagedMemory`. For what is not in paged memory nothing is done.
    indices : array_like of int, optional
        Of rows along the first axis, as `take` picks them; by default all.
    wait : bool
        Return when the blocks are there. Else at once; then blocks that cannot be read are left
        out, and so is all of it if eight such calls are still at work.

    Raises
    ------
    IndexError
        An index is out of range.
    StoreError
        With `wait`: a block cannot be read. The first of them ends the call, after
        `store_timeout` seconds; what was read until then stays.
    TypeError
        `view` has no memory to look at.
    ValueError
        The region is closed.

    Notes
    -----
    Of more blocks than three quarters of the limit the first are read, in the order of the store.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "table.npy")
    ...     np.save(path, np.arange(1_000_000).reshape(-1, 10))
    ...     table = pagemove.open_array(path, block_size="4KiB")
    ...     pagemove.prefetch(table, [5, 80_000], wait=True)
    ...     pagemove.region_of(table).stats().prefetched
    2
    """
    array = array_behind(view, "prefetch").view(np.ndarray)
    region, place = region_behind(array)
    if indices is not None:
        if region is None:
            np.empty(array.shape, np.dtype([])).take(indices, 0)  # type: ignore[arg-type]
        else:
            gather.prefetch_rows(array, region, indices, wait)
    elif region is not None:
        runs = runs_of(place, region.address, region.block_size)
        gather.read_together(region, runs, wait)

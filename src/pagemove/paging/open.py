"""Arrays straight from a file: `open_array`, and `region_of` for what is behind them."""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pagemove import limits
from pagemove.containers.layout import ChunkedError, Layout
from pagemove.containers.npy import check_items, read_header
from pagemove.paging.array import PagedArray
from pagemove.paging.members import (
    Deflated,
    array_in,
    kind_of,
    member_array,
    opened,
    origin_of,
)
from pagemove.paging.options import check_keywords, check_store
from pagemove.paging.region import PagedMemory
from pagemove.paging.sources import Source
from pagemove.paging.tokens import register
from pagemove.stores.base import Store
from pagemove.stores.file import FileStore
from pagemove.views import owner_behind

if TYPE_CHECKING:
    from typing import Unpack

    from pagemove.paging.options import PagingOptions


def open_array(
    source: str | os.PathLike[str] | Store,
    *,
    dtype: npt.DTypeLike | None = None,
    shape: int | tuple[int, ...] | None = None,
    offset: int = 0,
    deflated: Deflated = "refuse",
    storage_options: Mapping[str, Any] | None = None,
    lock: bool = True,
    **paging: Unpack[PagingOptions],
) -> PagedArray:
    """Open a file as an array whose blocks are read when they are touched.

    Parameters
    ----------
    source : str, path-like or Store
        A ``.npy`` file, known by its header whatever its name; or any other file, with `dtype`. A
        URL that fsspec opens, ``s3://bucket/x.npy``, or that of a Redis server with the name of an
        array, ``redis://server/0#weights``; or any store (a `stores.SlicedStore` says its own shape
        and dtype). Of a file that holds arrays by name, as `open_arrays` opens it, the array:
        ``weights.npz#a``, also in a URL, or with `name`. A file whose whole name is that, with the
        ``#``, comes first. Also an array of a zarr, ``x.zarr#name``, and a data set of an HDF5 file
        that is in chunks: these are decoded in a process of their own (`stores.SlicedStore`). Or
        what another process hands over with `serve`, ``pagemove://host:port/name`` or
        ``pagemove+unix:///path#name``.
    dtype : dtype, optional
        Of the items of a file that has no header.
    shape : int or tuple of int, optional
        Of such a file; by default one dimension, up to its end. One length may be -1: what the file
        has.
    offset : int
        Bytes of such a file before the first item.
    deflated : {"refuse", "compress"}
        Of an array that is compressed in an ``.npz``: as for `open_arrays`.
    storage_options : mapping, optional
        For a URL: as for `pagemove.stores.FsspecStore` or `pagemove.stores.RedisStore`. For a path
        ``direct``: as for `pagemove.stores.FileStore`. For an array that is handed over, all are
        optional: ``secret``, as the giver's; ``ssl``, to speak TLS: True, a file of certificates to
        trust, or a mapping with ``cafile``, ``certfile``, ``keyfile`` or ``server_hostname``; and
        ``backing``, a directory for what arrives, or ``"memory"`` (by default that for temporary
        files).
    lock : bool
        For a path, in mode ``"r+"``: refuse while another region or store writes the file, and
        refuse others as long as this one does; see `pagemove.stores.FileStore`.
    **paging
        Keywords that `PagedMemory` has too; all are optional.

        - `resident_limit`, int or str: the most bytes in memory at any moment, as a number or as
          ``"256MiB"``. By default all arrays without a limit of their own have half of the
          memory available together, and no limit as long as they fit it; ``"unlimited"``: none.
        - `block_size`, int or str: bytes that are read and written at once, a power of two from
          the page size to 2 MiB. Small for random touches, large for sequences.
        - `mode`, str: ``"r"`` (the default), read only; ``"r+"``, changes go to the file; ``"c"``,
          changes stay private to the region, and the file is never written. Of an array that is
          handed over the default is ``"r+"``.
        - `name`, str: of a file that holds arrays by name, which of them. Else as for
          `PagedMemory`, the name of the mapping.
        - `prefetch`, `store_timeout`, `writeback_interval`: see `PagedMemory`.

    Returns
    -------
    PagedArray
        A `numpy.ndarray` in the order of axes and of bytes that the file has, writeable unless the
        mode is ``"r"``. It keeps its region alive: nothing has to be closed, but can be
        (`PagedArray.close`). `region_of` returns the region, to flush it or to read its statistics.
        When the last view of the array goes, changes are flushed; what cannot be saved then is
        reported on standard error, so flush, or close, where it matters.

    Raises
    ------
    TypeError
        Neither a header nor a `dtype`; items that are Python objects; `source` is in memory
        already.
    ValueError
        The file does not have as many bytes as the array needs, or a header that cannot be read;
        `dtype` or `shape` contradict the header; there is no array of that name, or it cannot be
        paged in place.
    UnsupportedError
        Whatever `PagedMemory` cannot do here.
    ImportError
        fsspec or redis, or what they need for such a URL, is not installed.
    BlockingIOError
        Another region or store writes the file, in this process or in another.
    OSError
        The file, object or array cannot be opened, or what `PagedMemory` raises.

    Notes
    -----
    Nothing but the header is read. An array with an `offset` that is not a multiple of its items'
    alignment is not aligned, as with `numpy.memmap`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "squares.npy")
    ...     np.save(path, np.arange(1_000_000) ** 2)
    ...     squares = pagemove.open_array(path, resident_limit="1MiB")
    ...     int(squares[999_999]), squares.dtype.name, squares.flags.writeable
    (999998000001, 'int64', False)
    """
    check_keywords("open_array", paging)
    given = dtype is not None or shape is not None or bool(operator.index(offset))
    if not isinstance(paging.get("name"), str | None):
        raise TypeError(f"name must be a string, not {type(paging['name']).__name__}")
    if isinstance(source, Store):
        if not given and paging.get("name") is not None and kind_of(source):
            return _named(source, paging.pop("name"), deflated, paging)
        return _array(source, dtype, shape, offset, paging)
    if not isinstance(source, str | os.PathLike):
        check_store(source)  # which says why not
    found = Source(os.fsdecode(source), storage_options or {})
    if found.is_handed:
        if given:
            raise TypeError(f"{found}: the giver says what it is: no dtype, shape or offset")
        return _handed(found, paging)
    named, inner = found.split()
    writable = paging.get("mode") == "r+"
    if named.is_zarr:
        inner = inner or paging.pop("name", None)
        return _decoded(named, inner, dtype, shape, offset, paging)
    with limits.named():
        whole = named.open_whole(writable=writable, lock=lock)
    # The region has its own descriptor, or its own process.
    with whole as store:
        if inner is None and not given and paging.get("name") is not None and kind_of(store):
            inner = paging.pop("name")
        if inner is None:
            return _array(store, dtype, shape, offset, paging)
        if given:
            raise TypeError(f"{store!r} says itself what {inner!r} is: no dtype, shape or offset")
        with (
            opened(named, inner, store, writable=writable, lock=lock) as shard,
            contextlib.suppress(ChunkedError),
        ):
            return _named(shard, inner, deflated, paging)
    return _decoded(named, inner, None, None, 0, paging)


def region_of(array: npt.NDArray[Any]) -> PagedMemory:
    """Find the region behind an array, to flush it or to look at its statistics.

    Parameters
    ----------
    array : numpy.ndarray
        From `open_array` or `PagedMemory.asarray`, or a view of such an array.

    Returns
    -------
    PagedMemory
        As long as it is referred to, it stays too.

    Raises
    ------
    TypeError
        `array` is not an array.
    ValueError
        It is not in paged memory; copies are not.

    Examples
    --------
    >>> import tempfile
    >>> import pagemove
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"0123456789")
    ...     file.flush()
    ...     digits = pagemove.open_array(file.name, dtype="S1", mode="r+")
    ...     digits[3:5] = b"x"
    ...     pagemove.region_of(digits[3:]).flush()
    ...     file.seek(0), file.read()
    (0, b'012xx56789')
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{type(array).__name__} is not an array")
    region = owner_behind(array, PagedMemory)
    if region is None:
        raise ValueError(
            "this array is not in paged memory: only arrays of open_array and PagedMemory.asarray, "
            "and views of them, are; copies are not"
        )
    return region


def _handed(source: Source, paging: PagingOptions) -> PagedArray:
    """Take an array that another process hands over; it is here when the first block is."""
    with source.handed(store_timeout=paging.get("store_timeout", 5.0)) as store:
        store._eager = True
        paging.setdefault("mode", "r+")
        region = PagedMemory(store, **paging)
        region._forgettable = True
        try:
            region.prefetch(0, 1, wait=True)
        except BaseException:
            region.close()
            raise
        offer = store.offer
    register()
    return array_in(region, 0, Layout(offer.dtype, offer.shape, offer.fortran, offset=0))


def _decoded(
    named: Source,
    name: str | None,
    dtype: npt.DTypeLike | None,
    shape: int | tuple[int, ...] | None,
    offset: int,
    paging: PagingOptions,
) -> PagedArray:
    """Open an array that is decoded by slices, in the process that serves its region."""
    # Which files that are whole do not need.
    from pagemove.paging.decoded import decoded_store, with_room

    with decoded_store(named, name, writable=paging.get("mode") == "r+") as store:
        return _array(store, dtype, shape, offset, with_room(store, paging))


def _named(store: Store, name: str | None, deflated: Deflated, paging: PagingOptions) -> PagedArray:
    """Open an array by its name in the store."""
    array = member_array(store, name or "", deflated, paging)
    return array if isinstance(array, PagedArray) else _array(array, None, None, 0, paging)


def _array(
    store: Store,
    dtype: npt.DTypeLike | None,
    shape: int | tuple[int, ...] | None,
    offset: int,
    paging: PagingOptions,
) -> PagedArray:
    asked = operator.index(offset) or _is_all(store, dtype, shape)
    header = None if asked else _known(store)
    if header is None:
        layout = _raw(store, dtype, shape, offset)
    else:
        _check_agreement(store, header, dtype, shape)
        layout = header
    needed = layout.offset + layout.nbytes
    if needed > store.nbytes:
        raise ValueError(
            f"{store!r} has {store.nbytes} bytes, and an array of shape {layout.shape} of "
            f"{layout.dtype} from byte {layout.offset} on needs {needed}: it was truncated, or it "
            "is not such an array"
        )
    region = PagedMemory(store, **paging)
    region._forgettable = True
    register()
    region._origin = origin_of(store, layout.offset, region)
    return array_in(region, 0, layout)


def _is_all(store: Store, dtype: npt.DTypeLike | None, shape: int | tuple[int, ...] | None) -> bool:
    """Whether that is all of a store that may take long to answer: it has no header then."""
    if isinstance(store, FileStore) or dtype is None or shape is None or store._items() is not None:
        return False
    return math.prod(_sizes(shape)) * np.dtype(dtype).itemsize == store.nbytes


def _known(store: Store) -> Layout | None:
    """Take the layout from what the store says of itself, or from a header."""
    items = store._items()
    if items is None:
        return read_header(store)
    shape, dtype = items
    return Layout(dtype, shape, fortran=False, offset=0)


def _raw(
    store: Store,
    dtype: npt.DTypeLike | None,
    shape: int | tuple[int, ...] | None,
    offset: int,
) -> Layout:
    """Take the layout of a file without a header from the arguments."""
    if dtype is None and kind_of(store):
        raise TypeError(
            f"{store!r} is a {kind_of(store)} file, which holds arrays by name: pass name=, or "
            "open all with pagemove.open_arrays"
        )
    if dtype is None:
        raise TypeError(
            f"{store!r} has no .npy header, so nothing says what it holds: pass a dtype"
        )
    kind, start = np.dtype(dtype), operator.index(offset)
    check_items(store, kind)
    if not 0 <= start <= store.nbytes:
        raise ValueError(f"offset {start} is not within the {store.nbytes} bytes of {store!r}")
    if shape is None:
        if kind.itemsize == 0:
            raise ValueError(f"dtype {kind} has no size: pass a shape")
        count, rest = divmod(store.nbytes - start, kind.itemsize)
        if rest:
            raise ValueError(
                f"the {store.nbytes - start} bytes from {start} on of {store!r} are not whole "
                f"items of {kind.itemsize} bytes: pass a shape, for instance {count}, or another "
                "dtype or offset"
            )
        shape = count
    sizes = _sizes(shape)
    if sizes.count(-1) == 1 and kind.itemsize:
        sizes = _completed(store, sizes, kind, start)
    if min(sizes, default=0) < 0:
        raise ValueError(f"negative dimension in shape {shape}")
    return Layout(kind, sizes, fortran=False, offset=start)


def _completed(
    store: Store, sizes: tuple[int, ...], kind: np.dtype[Any], start: int
) -> tuple[int, ...]:
    """Put in the length that is -1: what is left of the store, as NumPy's reshape has it."""
    row = math.prod(size for size in sizes if size != -1) * kind.itemsize
    count, rest = divmod(store.nbytes - start, row) if row > 0 else (0, 1)
    if rest:
        raise ValueError(
            f"the {store.nbytes - start} bytes from {start} on of {store!r} are no whole number of "
            f"rows for shape {sizes} of {kind}"
        )
    return tuple(count if size == -1 else size for size in sizes)


def _sizes(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(operator.index, shape if isinstance(shape, tuple | list) else (shape,)))


def _check_agreement(
    store: Store,
    header: Layout,
    dtype: npt.DTypeLike | None,
    shape: int | tuple[int, ...] | None,
) -> None:
    same_type = dtype is None or np.dtype(dtype) == header.dtype
    if not same_type or (shape is not None and _sizes(shape) != header.shape):
        raise ValueError(
            f"{store!r} has a .npy header that says shape {header.shape} of {header.dtype}: leave "
            f"dtype and shape out, or say offset={header.offset} to see its data as something else"
        )

"""Arrays straight from a file: `open_array`, and `region_of` for what is behind them."""

from __future__ import annotations

import io
import math
import operator
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pagemove import limits
from pagemove.paging.array import Origin, PagedArray
from pagemove.paging.options import check_store
from pagemove.paging.region import PagedMemory
from pagemove.paging.sources import Source
from pagemove.paging.tokens import register
from pagemove.stores.base import Store
from pagemove.stores.file import FileStore
from pagemove.stores.sliced import SlicedStore
from pagemove.views import owner_behind

if TYPE_CHECKING:
    from typing import Unpack

    from pagemove.paging.options import PagingOptions

_MAGIC = np.lib.format.MAGIC_PREFIX
_MAGIC_NBYTES = np.lib.format.MAGIC_LEN
# Enough for tables with thousands of columns. Parsing takes time and memory by the byte, 20 s and
# 500 MiB for 1 MiB, and time by the square of the depth.
_HEADER_MOST = 128 << 10
_DEEPEST = 64


class _Layout(NamedTuple):
    """How bytes are an array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int


def open_array(
    source: str | os.PathLike[str] | Store,
    *,
    dtype: npt.DTypeLike | None = None,
    shape: int | tuple[int, ...] | None = None,
    offset: int = 0,
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
        and dtype).
    dtype : dtype, optional
        Of the items of a file that has no header.
    shape : int or tuple of int, optional
        Of such a file; by default one dimension, up to its end.
    offset : int
        Bytes of such a file before the first item.
    storage_options : mapping, optional
        For a URL: as for `pagemove.stores.FsspecStore` or `pagemove.stores.RedisStore`.
    lock : bool
        For a path, in mode ``"r+"``: refuse while another region or store writes the file, and
        refuse others as long as this one does; see `pagemove.stores.FileStore`.
    **paging
        Keywords that `PagedMemory` has too; all are optional.

        - `resident_limit`, int or str: the most bytes in memory at any moment, as a number or as
          ``"256MiB"``. By default half of the memory available, where the file is larger than
          that, else no limit; ``"unlimited"``: none.
        - `block_size`, int or str: bytes that are read and written at once, a power of two from
          the page size to 2 MiB. Small for random touches, large for sequences.
        - `mode`, str: ``"r"`` (the default), read only; ``"r+"``, changes go to the file; ``"c"``,
          changes stay private to the region, and the file is never written.
        - `prefetch`, `store_timeout`, `writeback_interval`, `name`: see `PagedMemory`.

    Returns
    -------
    PagedArray
        A `numpy.ndarray` in the order of axes and of bytes that the file has, writeable unless the
        mode is ``"r"``. It keeps its region alive: nothing has to be closed. `region_of` returns
        the region, to flush it or to read its statistics. When the last view of the array goes,
        changes are flushed; what cannot be saved then is reported on standard error, so flush where
        it matters.

    Raises
    ------
    TypeError
        Neither a header nor a `dtype`; items that are Python objects; `source` is in memory
        already.
    ValueError
        The file does not have as many bytes as the array needs, or a header that cannot be read;
        `dtype` or `shape` contradict the header.
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
    if isinstance(source, Store):
        return _array(source, dtype, shape, offset, paging)
    if not isinstance(source, str | os.PathLike):
        check_store(source)  # which says why not
    named = Source(os.fsdecode(source), storage_options or {})
    with limits.named():
        opened = named.open(writable=paging.get("mode") == "r+", lock=lock)
    with opened as store:
        # The region has its own descriptor, or its own process.
        return _array(store, dtype, shape, offset, paging)


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


def _array(
    store: Store,
    dtype: npt.DTypeLike | None,
    shape: int | tuple[int, ...] | None,
    offset: int,
    paging: PagingOptions,
) -> PagedArray:
    header = None if operator.index(offset) else _known(store)
    if header is None:
        layout = _raw(store, dtype, shape, offset)
    else:
        _check_agreement(store, header, dtype, shape)
        layout = header
    needed = layout.offset + layout.dtype.itemsize * math.prod(layout.shape)
    if needed > store.nbytes:
        raise ValueError(
            f"{store!r} has {store.nbytes} bytes, and an array of shape {layout.shape} of "
            f"{layout.dtype} from byte {layout.offset} on needs {needed}: it was cut short, or it "
            "is not such an array"
        )
    region = PagedMemory(store, **paging)
    region._forgettable = True
    register()
    if isinstance(store, FileStore):
        region._origin = Origin(store.path, layout.offset, region.mode)
    shape_in_file = layout.shape[::-1] if layout.fortran else layout.shape
    array = region.asarray(layout.dtype, shape_in_file, layout.offset).view(PagedArray)
    return array.T if layout.fortran else array


def _known(store: Store) -> _Layout | None:
    """Take the layout from what the store says of itself, or from a header."""
    if isinstance(store, SlicedStore):
        return _Layout(store.dtype, store.shape, fortran=False, offset=0)
    return _header(store)


def _raw(
    store: Store,
    dtype: npt.DTypeLike | None,
    shape: int | tuple[int, ...] | None,
    offset: int,
) -> _Layout:
    """Take the layout of a file without a header from the arguments."""
    if dtype is None:
        raise TypeError(
            f"{store!r} has no .npy header, so nothing says what it holds: pass a dtype"
        )
    kind, start = np.dtype(dtype), operator.index(offset)
    _check_items(store, kind)
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
    if min(sizes, default=0) < 0:
        raise ValueError(f"negative dimension in shape {shape}")
    return _Layout(kind, sizes, fortran=False, offset=start)


def _sizes(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(operator.index, shape if isinstance(shape, tuple | list) else (shape,)))


def _check_items(store: Store, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise TypeError(
            f"{store!r} cannot be paged as {dtype}: Python objects are pickled, and not where an "
            "array could find them; save it with another dtype"
        )


def _check_agreement(
    store: Store,
    header: _Layout,
    dtype: npt.DTypeLike | None,
    shape: int | tuple[int, ...] | None,
) -> None:
    same_type = dtype is None or np.dtype(dtype) == header.dtype
    if not same_type or (shape is not None and _sizes(shape) != header.shape):
        raise ValueError(
            f"{store!r} has a .npy header that says shape {header.shape} of {header.dtype}: leave "
            f"dtype and shape out, or say offset={header.offset} to see its data as something else"
        )


def _header(store: Store) -> _Layout | None:
    """Read the header of a .npy file; None if there is none."""
    prefix = _head(store, _MAGIC_NBYTES + 4)
    if not prefix.startswith(_MAGIC):
        return None
    try:
        version = np.lib.format.read_magic(io.BytesIO(prefix))
        # The length of what follows has two bytes in version 1, four in the others.
        size = struct.Struct("<H" if version[0] == 1 else "<I")
        start = _MAGIC_NBYTES + size.size
        (length,) = size.unpack(prefix[_MAGIC_NBYTES:start])
        if length > _HEADER_MOST:
            raise ValueError(f"it has {length} bytes, more than the {_HEADER_MOST} that are read")
    except (ValueError, struct.error) as error:
        raise _unreadable(store, error) from None
    text = _head(store, start + length)[start:]
    try:
        shape, fortran, dtype = _parsed(version, size, text)
    # NumPy's parser raises a different exception for every kind of malformed header.
    except Exception as error:
        raise _unreadable(store, error) from None
    _check_items(store, dtype)
    return _Layout(dtype, shape, fortran and len(shape) > 1, start + length)


def _parsed(
    version: tuple[int, int], size: struct.Struct, text: bytes
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Have NumPy read the text of a header."""
    nesting = np.frombuffer(text, np.uint8)
    opening, closing = np.isin(nesting, list(b"([{")), np.isin(nesting, list(b")]}"))
    if (opening.astype(np.int32) - closing).cumsum().max(initial=0) > _DEEPEST:
        raise ValueError(f"its brackets are nested deeper than {_DEEPEST}")
    reads = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version == (3, 0):
        # NumPy's public functions end with version 2. Version 3 is the same in UTF-8, which can
        # stand in the strings of a version 2 as escapes.
        version, text = (2, 0), text.decode("utf-8").encode("ascii", "backslashreplace")
    if version not in reads:
        raise ValueError(f"version {version} is not known")
    file = io.BytesIO(size.pack(len(text)) + text)
    return reads[version](file, max_header_size=_HEADER_MOST)


def _unreadable(store: Store, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0][:200] or type(error).__name__
    return ValueError(
        f"{store!r} begins like a .npy file, but its header cannot be read: {reason}; if it is "
        "something else, page it with PagedMemory"
    )


def _head(store: Store, nbytes: int) -> bytes:
    head = bytearray(min(nbytes, store.nbytes))
    store.read_into(0, head)
    return bytes(head)

"""Anything that can be sliced as a store: chunked HDF5, zarr, and arrays behind any callable."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pagemove.errors import StoreError
from pagemove.stores import ranges, sliceable
from pagemove.stores.base import Store, read_only
from pagemove.stores.boxes import Sizes, boxes, parts, place_of, tile_of
from pagemove.stores.descriptors import tell_in_child
from pagemove.stores.unsynced import sync_file_system

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SMALLEST_TILE = 1 << 20
_CACHE = 64 << 20
_LARGEST_CACHE = 256 << 20
_STRIPES = 64


class SlicedStore(Store):
    """The items of an array that is read by slices, in C order, as bytes.

    Slabs are read, and decoded, whole: rows of chunks. Some are kept, so that the blocks of a
    region that lie in one do not decode it again.

    Parameters
    ----------
    open : callable or str
        Returns the array: anything with `shape`, `dtype` and ``[slices]`` whose results
        `numpy.asarray` takes. It is called where the store is used, in the helper process of a
        region, and has to pickle; or ``"module:function"``, which is imported there.
    writable : bool
        Slabs are assigned to it: for what that writes (zarr, h5py, tensorstore, `numpy.memmap`).
        `open` has to open it so.
    cache : int, optional
        Bytes of slabs that are kept. By default 64 MiB, or two rows of chunks if these are
        more and at most 256 MiB.
    chunks : sequence of int, optional
        Shape of what is decoded at once; by default what the array says of itself.
    path : path-like, optional
        The file or folder that it writes: `flush` has its file system written.

    Attributes
    ----------
    shape : tuple of int
        Of the array.
    dtype : numpy.dtype
        Of its items.
    slab : tuple of int
        Shape of what is read and kept as one.

    Raises
    ------
    TypeError
        `open` cannot be called; what it returns cannot be sliced, or has Python objects.
    ValueError
        The array has no items; `writable`, and it cannot be assigned to.

    Notes
    -----
    It is opened once to see what it is, and closed: with what it has for that, its own ``close`` or
    that of its ``file``.

    **Sharing.** What others write into slabs that are kept is not seen. Two writers, of any part of
    one chunk, undo each other's changes.

    **Writing.** Each `write` assigns whole slabs, so it encodes all chunks that it has a byte of.
    What it does not cover is read first.

    **Durability.** `flush` calls the array's ``flush`` or its file's, and has the file system of
    `path` written (syncfs). Without `path` it is as durable as the array makes it.

    Examples
    --------
    >>> import numpy as np, pagemove
    >>> def table():
    ...     return np.arange(12).reshape(3, 4)
    >>> with pagemove.stores.SlicedStore(table) as store:
    ...     row = np.zeros(4, store.dtype)
    ...     store.read_into(row.nbytes, row)
    ...     store.shape, row.tolist()
    ((3, 4), [4, 5, 6, 7])
    """

    def __init__(
        self,
        open: Callable[[], Any] | str,
        *,
        writable: bool = False,
        cache: int | None = None,
        chunks: Sequence[int] | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        if not callable(open) and not isinstance(open, str):
            raise TypeError(
                "open must be a function that returns the array, or 'module:function', not "
                f"{type(open).__name__}: the helper process opens it itself, and is passed no data"
            )
        self._opener = open
        self._writable = bool(writable)
        self._path = None if path is None else os.path.abspath(path)
        array = sliceable.called(open)
        try:
            self.shape, self.dtype = sliceable.described(array)
            cut = sliceable.chunks_of(array, writable=writable) if chunks is None else tuple(chunks)
            if writable:
                sliceable.check_assignable(array)
        finally:
            sliceable.close(array)
        if len(cut) != len(self.shape):
            raise ValueError(f"chunks {cut} and shape {self.shape} have not as many axes")
        size = self.dtype.itemsize
        self._nbytes = math.prod(self.shape) * size
        row = math.prod((*cut[:1], *self.shape[1:])) * size
        self._most = cache if cache is not None else max(_CACHE, 2 * row)
        if cache is None and self._most > _LARGEST_CACHE:
            self._most = _LARGEST_CACHE
        self._cut = cut
        self._cut_slabs()
        self._start()

    def _cut_slabs(self) -> None:
        # Of a slab that is written all is encoded.
        least = 0 if self._writable else min(_SMALLEST_TILE, self._most // 4)
        size = self.dtype.itemsize
        self.slab = tile_of(self.shape, self._cut, size, least, self._most // 4)

    def _keep_at_most(self, nbytes: int) -> int:
        """Keep less than was chosen, but two of what is decoded at once; return how much it is."""
        chunk = math.prod(map(min, self._cut, self.shape)) * self.dtype.itemsize
        self._most = min(self._most, max(nbytes, 2 * chunk), max(self._nbytes, 2 * chunk))
        self._cut_slabs()
        return self._most

    def _start(self) -> None:
        self._array: Any = None
        self._opening = threading.Lock()
        self._kept: OrderedDict[Sizes, npt.NDArray[Any]] = OrderedDict()
        self._keeping = threading.Lock()
        self._kept_nbytes = self._decoded = self._decoded_nbytes = self._encoded = 0
        self._locks = [threading.Lock() for _ in range(_STRIPES)]
        tell_in_child(self)

    def _in_child(self) -> None:
        # What is open is the parent's, and so may be its locks.
        self._start()

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._nbytes

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing too."""
        return self._writable

    def _get_ready(self) -> None:
        # Libraries take seconds to import.
        self._opened()

    def _items(self) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
        return self.shape, self.dtype

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer from slabs that are kept, or are read.

        Parameters
        ----------
        offset : int
            First byte.
        buffer : writable buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The array gave something else than a slab of its items.
        ValueError
            The range is not within the store.

        Examples
        --------
        >>> import numpy as np, pagemove
        >>> table = np.zeros((2, 4), "u1")
        >>> with pagemove.stores.SlicedStore(lambda: table + 7) as store:
        ...     row = bytearray(4)
        ...     store.read_into(4, row)
        >>> [*row]
        [7, 7, 7, 7]
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        size = self.dtype.itemsize
        first, last = start // size, -(-(start + view.nbytes) // size)
        if start % size or view.nbytes % size:
            items = np.empty(last - first, self.dtype)
            self._read(first, last, items)
            view[:] = items.view(np.uint8).data[start - first * size :][: view.nbytes]
        elif view.nbytes:
            self._read(first, last, np.frombuffer(view, self.dtype))

    def _read(self, first: int, last: int, items: npt.NDArray[Any]) -> None:
        for box in boxes(self.shape, first, last):
            at = box.first - first
            target = items[at : at + math.prod(box.shape)].reshape(box.shape)
            for part in parts(box, self.slab):
                with self._lock(part.tile):
                    slab = self._slab(part.tile)
                target[part.in_box] = slab[part.in_tile]

    def write(self, offset: int, data: Buffer) -> None:
        """Assign the slabs that have these bytes.

        Parameters
        ----------
        offset : int
            First byte.
        data : buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The store was not opened for writing.
        ValueError
            The range is not within the store.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "table")
        ...     table = np.memmap(path, "u1", "w+", shape=(2, 4))
        ...     with pagemove.stores.SlicedStore(lambda: table, writable=True) as store:
        ...         store.write(4, b"spam")
        ...         store.flush()
        ...     path.read_bytes()[4:]
        b'spam'
        """
        view = memoryview(data).cast("B")
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        if not self._writable:
            raise read_only(repr(self), start)
        size = self.dtype.itemsize
        while view and start % size:
            length = min(size - start % size, view.nbytes)
            self._write_part(start // size, start % size, view[:length])
            view, start = view[length:], start + length
        whole = view.nbytes // size * size
        if whole:
            items = np.frombuffer(view[:whole], self.dtype)
            self._write(start // size, items)
        if view[whole:]:
            self._write_part((start + whole) // size, 0, view[whole:])

    def _write(self, first: int, items: npt.NDArray[Any]) -> None:
        for box in boxes(self.shape, first, first + len(items)):
            at = box.first - first
            source = items[at : at + math.prod(box.shape)].reshape(box.shape)
            for part in parts(box, self.slab):
                values = source[part.in_box]
                with self._lock(part.tile):
                    place = place_of(part.tile, self.slab, self.shape)
                    lengths = tuple(each.stop - each.start for each in place)
                    # Those that are kept never change: others read from them without the lock.
                    if values.shape == lengths:
                        slab = values.copy()
                    else:
                        slab = self._slab(part.tile).copy()
                        slab[part.in_tile] = values
                    self._assign(part.tile, place, slab)

    def _write_part(self, item: int, begin: int, data: memoryview) -> None:
        """Write some bytes of one item."""
        (box,) = boxes(self.shape, item, item + 1)
        (part,) = parts(box, self.slab)
        with self._lock(part.tile):
            slab = self._slab(part.tile).copy()
            raw = bytearray(slab[part.in_tile].tobytes())
            raw[begin : begin + data.nbytes] = data
            slab[part.in_tile] = np.frombuffer(raw, self.dtype).reshape(box.shape)
            self._assign(part.tile, place_of(part.tile, self.slab, self.shape), slab)

    def flush(self) -> None:
        """Have the array, its file, and the file system of the path written.

        Raises
        ------
        OSError
            What they raise.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "table")
        ...     table = np.memmap(path, "u1", "w+", shape=(2, 4))
        ...     with pagemove.stores.SlicedStore(lambda: table, writable=True) as store:
        ...         store.write(4, b"spam")
        ...         store.flush()
        ...     path.read_bytes()[4:]
        b'spam'
        """
        if not self._writable:
            return
        array = self._opened()
        for each in (array, getattr(array, "file", None)):
            flush = getattr(each, "flush", None)
            if callable(flush):
                flush()
        if self._path is not None:
            sync_file_system(self._path)

    def close(self) -> None:
        """Close the array, and drop what is kept. Twice is fine.

        Examples
        --------
        >>> import numpy as np, pagemove
        >>> table = np.zeros((2, 4), "u1")
        >>> store = pagemove.stores.SlicedStore(lambda: table)
        >>> store.close()
        """
        array, self._array = self._array, None
        with self._keeping:
            self._kept.clear()
            self._kept_nbytes = 0
        if array is not None:
            sliceable.close(array)

    def stats(self) -> dict[str, float]:
        """Return how many slabs were decoded and encoded so far, and how many bytes are kept.

        Examples
        --------
        >>> import numpy as np, pagemove
        >>> table = np.zeros((2, 4), "u1")
        >>> with pagemove.stores.SlicedStore(lambda: table) as store:
        ...     store.read_into(0, bytearray(4))
        ...     sorted(store.stats())
        ['decoded', 'decoded_nbytes', 'encoded', 'kept_nbytes']
        """
        return {
            "decoded": self._decoded,
            "decoded_nbytes": self._decoded_nbytes,
            "encoded": self._encoded,
            "kept_nbytes": self._kept_nbytes,
        }

    def _lock(self, tile: Sizes) -> threading.Lock:
        return self._locks[hash(tile) % _STRIPES]

    def _opened(self) -> Any:
        with self._opening:
            if self._array is None:
                array = sliceable.called(self._opener)
                if sliceable.described(array) != (self.shape, self.dtype):
                    sliceable.close(array)
                    raise StoreError(
                        errno.ESTALE,
                        f"{self!r} is not what it was when the store was made: shape and dtype are "
                        "others; make the store anew",
                        store=repr(self),
                        operation="read",
                    )
                self._array = array
            return self._array

    def _slab(self, tile: Sizes) -> npt.NDArray[Any]:
        """Return a slab that is kept, or read it. The caller holds its lock."""
        with self._keeping:
            found = self._kept.get(tile)
            if found is not None:
                self._kept.move_to_end(tile)
                return found
        place = place_of(tile, self.slab, self.shape)
        slab = np.asarray(self._opened()[place])
        lengths = tuple(each.stop - each.start for each in place)
        if slab.shape != lengths or not np.can_cast(slab.dtype, self.dtype, "equiv"):
            raise StoreError(
                errno.EIO,
                f"cannot read {self!r}: its items {place} have shape {slab.shape} and dtype "
                f"{slab.dtype}, not {lengths} and {self.dtype}",
                store=repr(self),
                operation="read",
            )
        slab = np.ascontiguousarray(slab, self.dtype).reshape(lengths)
        self._keep(tile, slab)
        with self._keeping:
            self._decoded += 1
            self._decoded_nbytes += slab.nbytes
        return slab

    def _assign(self, tile: Sizes, place: tuple[slice, ...], slab: npt.NDArray[Any]) -> None:
        # What becomes of it if this raises is not known.
        self._forget(tile)
        self._opened()[place] = slab
        self._keep(tile, slab)
        with self._keeping:
            self._encoded += 1

    def _keep(self, tile: Sizes, slab: npt.NDArray[Any]) -> None:
        with self._keeping:
            self._kept[tile] = slab
            self._kept_nbytes += slab.nbytes
            while self._kept_nbytes > self._most and self._kept:
                _, oldest = self._kept.popitem(last=False)
                self._kept_nbytes -= oldest.nbytes

    def _forget(self, tile: Sizes) -> None:
        with self._keeping:
            slab = self._kept.pop(tile, None)
            self._kept_nbytes -= 0 if slab is None else slab.nbytes

    def __getstate__(self) -> dict[str, Any]:
        # Handed over: a file that is open for writing may be refused to others.
        if self._writable:
            self.close()
        names = (
            "_opener",
            "_writable",
            "_path",
            "_nbytes",
            "_most",
            "_cut",
            "shape",
            "dtype",
            "slab",
        )
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        opener = self._opener
        name = opener if isinstance(opener, str) else getattr(opener, "__qualname__", repr(opener))
        return f"SlicedStore({name}{', writable=True' if self._writable else ''})"

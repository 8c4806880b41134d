"""All arrays of a file by their names: `open_arrays`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from pagemove import limits
from pagemove.containers.formats import contents_of
from pagemove.containers.layout import ChunkedError, Packed, best_shift, missing
from pagemove.containers.npy import read_header
from pagemove.containers.reading import Reading
from pagemove.errors import StoreError
from pagemove.paging.array import PagedArray
from pagemove.paging.budget import Budget
from pagemove.paging.closing import is_gone
from pagemove.paging.members import (
    Deflated,
    array_in,
    check_writable,
    index_of,
    is_index,
    origin_of,
    unpacked,
)
from pagemove.paging.options import check_keywords, check_store, is_size
from pagemove.paging.region import PagedMemory
from pagemove.paging.sources import Source
from pagemove.stores.base import Store
from pagemove.stores.parts import Part

if TYPE_CHECKING:
    from typing import Unpack

    from pagemove.paging.options import PagingOptions


def open_arrays(
    source: str | os.PathLike[str] | Store,
    *,
    deflated: Deflated = "refuse",
    storage_options: Mapping[str, Any] | None = None,
    lock: bool = True,
    **paging: Unpack[PagingOptions],
) -> PagedArrays:
    """Open a file that holds arrays by name, each to be paged from where it is in the file.

    Parameters
    ----------
    source : str, path-like or Store
        ``.npz``, safetensors (also the index of several, ``model.safetensors.index.json``), GGUF,
        HDF5 (needs h5py), Arrow IPC or Feather (needs pyarrow), known by how it begins. Or a URL of
        one, or a store with one. Or a zarr, by its name (``.zarr``).
    deflated : {"refuse", "compress"}
        What becomes of an array that is compressed in an ``.npz``: an error, or, when it is
        accessed, it is decompressed once, into compressed memory (needs zstandard) with a region of
        its own.
    storage_options : mapping, optional
        As for `open_array`.
    lock : bool
        As for `open_array`.
    **paging
        Keywords of `PagedMemory`, for the region of each file: `resident_limit`, `block_size`,
        `mode`, `prefetch` ... Where there may be several regions (an index, ``"compress"``,
        chunks), a `resident_limit` that is a size holds for all of them together, as a `Budget`
        does, and for what is kept of decoded chunks.

    Returns
    -------
    PagedArrays
        A mapping of names to arrays. Nothing but the header is read; a region is made at the first
        access to an array, one for all arrays of a file.

    Raises
    ------
    ValueError
        The file is of no format that is known, truncated, or has a header that is damaged: arrays
        that overlap, impossible lengths. Mode ``"r+"`` of an ``.npz``, whose checksums would be
        wrong then.
    ImportError
        What reads the format, or opens the URL, is not installed.
    OSError
        As for `open_array`.

    Notes
    -----
    An array that is not in the file as it is, compressed or of Python objects, raises when it is
    accessed, ValueError or TypeError, and others do not. Data sets of HDF5 in chunks, and arrays of
    zarr, are decoded in processes of their own, each with a region; not in mode ``"r+"`` of HDF5.
    Checksums are not compared: that would read all of it.

    Formats do not align items; the region begins at the byte of the file from which on most bytes
    are aligned. Others work as well (``flags.aligned`` is False), slower by half in arithmetic;
    `open_array` with `name` gives an array a region of its own, where it always is.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "both.npz")
    ...     np.savez(path, numbers=np.arange(100_000), squares=np.arange(1000) ** 2)
    ...     with pagemove.open_arrays(path, resident_limit="512KiB") as arrays:
    ...         list(arrays), int(arrays["squares"][-1]), arrays["numbers"].shape
    (['numbers', 'squares'], 998001, (100000,))
    """
    check_keywords("open_arrays", paging)
    if isinstance(source, Store):
        if is_index(source):
            raise ValueError(
                f"{source!r} is an index of other files, which a store does not lead to: pass its "
                "path or URL"
            )
        if deflated == "compress":
            paging = under_one_limit(paging)
        return PagedArrays(repr(source), {"": _File(source, deflated, paging)}, None)
    if not isinstance(source, str | os.PathLike):
        check_store(source)  # which says why not
    named = Source(os.fsdecode(source), storage_options or {})
    writable = paging.get("mode") == "r+"
    if named.is_zarr:
        from pagemove.paging.decoded import Hierarchy  # and zarr

        return PagedArrays(named.shown, {"": Hierarchy(named, under_one_limit(paging))}, None)
    with limits.named():
        store = named.open_whole(writable=writable, lock=lock)
    try:
        if deflated == "compress" or is_index(store):
            paging = under_one_limit(paging)
        if not is_index(store):
            own = _File(store, deflated, paging, owned=True, source=named)
            return PagedArrays(named.shown, {"": own}, None)
        with store:
            files = index_of(store)
    except BaseException:
        store.close()
        raise
    return PagedArrays(
        named.shown,
        {
            file: _Shard(named.beside(file), writable, lock, deflated, paging)
            for file in dict.fromkeys(files.values())
        },
        files,
    )


def under_one_limit(paging: PagingOptions) -> PagingOptions:
    """Have the regions of several files share a limit that was given as a size."""
    limit = paging.get("resident_limit")
    if not is_size(limit):
        return paging
    budget = Budget(limit)
    budget._spare = budget.limit // 2
    return {**paging, "resident_limit": budget}


class PagedArrays(Mapping[str, PagedArray]):
    """The arrays of a file by their names, as `open_arrays` returns them.

    An array keeps its region alive, also without the mapping. `close` closes the regions; a
    context manager does at its end. `PagedArray.close` closes one array, and with the last one that
    was accessed the region. Each access makes a view: keep what is used often.

    Attributes
    ----------
    regions : tuple of PagedMemory
        Those that were made so far.
    """

    def __init__(self, shown: str, files: dict[str, Any], where: Mapping[str, str] | None) -> None:
        self._shown, self._files, self._where = shown, files, where
        self._closed = False

    def __getitem__(self, name: str) -> PagedArray:
        if self._closed:
            raise ValueError(f"the arrays of {self._shown} are closed")
        if self._where is not None and name not in self._where:
            raise KeyError(missing(self._shown, name, self._where))
        file = self._files[self._where[name] if self._where is not None else ""]
        array: PagedArray = file.array(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def _names(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._files[""].names if self._where is None else self._where
        return found

    @property
    def regions(self) -> tuple[PagedMemory, ...]:
        """The regions that were made so far."""
        return tuple(region for file in self._files.values() for region in file.regions)

    def close(self) -> None:
        """Close the regions, which saves what was changed. Twice is fine.

        All that can be closed are, whatever it raises for others.

        Raises
        ------
        BufferError
            There are arrays still, of the regions that the message names.
        StoreError
            What was changed cannot be saved.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "arrays.npz")
        ...     np.savez(path, numbers=np.arange(1000))
        ...     arrays = pagemove.open_arrays(path)
        ...     total = int(arrays["numbers"].sum())
        ...     arrays.close()
        >>> total
        499500
        """
        self._close_regions()
        for file in self._files.values():
            file.close()
        self._closed = True

    def _close_regions(self) -> None:
        """Close all regions that can be, then raise if there are others."""
        unsaved: list[StoreError] = []
        in_use: list[str] = []
        regions = self.regions
        for region in regions:
            try:
                region.close()
            except StoreError as error:
                unsaved.append(error)
            except BufferError:
                in_use.append(region._label)
        if unsaved:
            for other in unsaved[1:]:
                unsaved[0].add_note(f"also: {other.strerror}")
            raise unsaved[0]
        if in_use:
            raise BufferError(
                f"{len(in_use)} of the {len(regions)} regions of {self._shown} cannot be closed, "
                f"for there are arrays of them: {', '.join(in_use)}; delete the arrays, or close "
                "each (PagedArray.close). All others are closed"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        # Arrays that are held still keep their region, which is saved and ends with them.
        with contextlib.suppress(BufferError):
            self.close()
        self._closed = True

    def __repr__(self) -> str:
        if self._closed:
            return f"<closed PagedArrays of {self._shown}>"
        return f"<PagedArrays of {self._shown}: {len(self)} arrays>"


class _File:
    """One file, its region, and those of what was unpacked."""

    def __init__(
        self,
        store: Store,
        deflated: Deflated,
        paging: PagingOptions,
        *,
        owned: bool = False,
        source: Source | None = None,
    ) -> None:
        self._store, self._owned = store, owned
        self._contents = contents_of(Reading(store))
        if source is not None and self._contents.has_chunks:
            paging = under_one_limit(paging)
        self._deflated, self._paging, self._source = deflated, paging, source
        self._decoded: Any = None
        check_writable(store, self._contents, writes=paging.get("mode") == "r+")
        self.names = dict.fromkeys(self._contents.names())
        self._making = threading.RLock()
        self._region: PagedMemory | None = None
        self._first = 0
        self._unpacked: dict[str, PagedMemory] = {}

    @property
    def regions(self) -> list[PagedMemory]:
        decoded = [] if self._decoded is None else self._decoded.regions
        whole = [] if self._region is None else [self._region]
        return [*whole, *self._unpacked.values(), *decoded]

    def array(self, name: str) -> PagedArray:
        with self._making:  # or every thread would make a region
            try:
                found = self._contents.find(name)
            except ChunkedError:
                # In mode "r+" the library would find the file locked, by this very store.
                if self._source is None or self._paging.get("mode") == "r+":
                    raise
                return self._from_chunks(name, self._source)
            if isinstance(found, Packed):
                return self._from_packed(name, found)
            if self._region is None or is_gone(self._region):
                spans = list(self._contents.spans())
                first = best_shift(spans) if spans else found.offset % max(found.dtype.alignment, 1)
                part = Part(self._store, first, self._store.nbytes - first)
                self._region = PagedMemory(part, **self._paging)
                self._first = first
                self._region._forgettable = True
                self._region._origin = origin_of(self._store, first, self._region)
                self._region._shares = set()
            array = array_in(self._region, self._first, found)
            self._region._share(max(found.offset - self._first, 0), found.nbytes)
            return array

    def _from_chunks(self, name: str, source: Source) -> PagedArray:
        if self._decoded is None:
            from pagemove.paging.decoded import Decoded

            self._decoded = Decoded(source, self._paging)
        array: PagedArray = self._decoded.array(name)
        return array

    def _from_packed(self, name: str, packed: Packed) -> PagedArray:
        region = self._unpacked.get(name)
        if region is None or is_gone(region):
            with unpacked(self._store, name, packed, self._deflated) as kept:
                region = PagedMemory(kept, **self._paging)
            region._forgettable = True
            self._unpacked[name] = region
        layout = read_header(region.store)
        if layout is None or layout.offset + layout.nbytes > packed.nbytes:
            raise ValueError(f"{self._store!r}: member {name!r} is not a whole array")
        return array_in(region, 0, layout)

    def close(self) -> None:
        for region in self.regions:
            region.close()
        if self._owned:
            self._store.close()

    def __del__(self) -> None:
        if getattr(self, "_owned", False):
            self._store.close()


class _Shard:
    """One of several files, opened when an array of it is wanted."""

    def __init__(
        self, source: Source, writable: bool, lock: bool, deflated: Deflated, paging: PagingOptions
    ) -> None:
        self._source, self._writable, self._lock = source, writable, lock
        self._deflated, self._paging = deflated, paging
        self._opening = threading.RLock()
        self._file: _File | None = None

    @property
    def regions(self) -> list[PagedMemory]:
        return [] if self._file is None else self._file.regions

    def array(self, name: str) -> PagedArray:
        with self._opening:
            if self._file is None:
                store = self._source.open_whole(writable=self._writable, lock=self._lock)
                try:
                    self._file = _File(store, self._deflated, self._paging, owned=True)
                except BaseException:
                    store.close()
                    raise
            return self._file.array(name)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

"""Arrays that a library decodes by slices, by the names that they have in a path or a URL."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pagemove.containers.hdf5 import dataset_in
from pagemove.containers.layout import missing
from pagemove.paging.array import PagedArray
from pagemove.paging.budget import Budget
from pagemove.paging.closing import is_gone
from pagemove.paging.options import is_size
from pagemove.paging.region import PagedMemory
from pagemove.paging.sizes import nbytes_of
from pagemove.stores.chunked import arrays_in, chunked_store, zarr_at
from pagemove.stores.sliced import SlicedStore
from pagemove.stores.urls import without_secret

if TYPE_CHECKING:
    from pagemove.paging.options import ModelessOptions, PagingOptions
    from pagemove.paging.sources import Source

_Options = TypeVar("_Options", bound="ModelessOptions")

# As `PagedMemory` has it.
_BLOCK = 64 << 10
_FEWEST_BLOCKS, _MANY_BLOCKS = 4, 64
_sparing = threading.Lock()


@dataclass(frozen=True, repr=False)
class _Far:
    """What opens an array behind a URL, in whatever process it is needed."""

    url: str
    options: Mapping[str, Any] = field(hash=False)
    name: str
    is_zarr: bool

    def __call__(self) -> Any:
        if self.is_zarr:
            return zarr_at(self.url, self.options, self.name)
        from pagemove.stores.fsspec import FsspecStore

        return dataset_in(FsspecStore(self.url, **self.options), self.name)

    def __repr__(self) -> str:
        return f"{without_secret(self.url)}{self.name and '#'}{self.name}"


def decoded_store(source: Source, name: str | None, *, writable: bool) -> SlicedStore:
    """Open an array that is decoded by slices: of a zarr, or a data set of HDF5 in chunks.

    Raises
    ------
    ValueError
        There is no such array; the name of a file does not end as those of HDF5 do; to be written,
        and behind a URL.
    ImportError, OSError, TypeError
        As `chunked_store`.
    """
    if source.path is None and writable:
        raise ValueError(
            f"{source} is decoded by slices behind a URL, and only read: use mode 'c', which keeps "
            "changes private"
        )
    try:
        if source.path is None:
            return SlicedStore(_Far(source.text, source.options, name or "", source.is_zarr))
        store = chunked_store(source.path, name or "", writable=writable)
    except KeyError as error:
        raise ValueError(f"there is no array {name!r} in {source}") from error
    if store is None:
        raise ValueError(
            f"{source}: array {name!r} is in chunks, and the file's name does not end as those of "
            "HDF5 do: rename it, or page a stores.SlicedStore of it"
        )
    return store


def with_room(store: SlicedStore, paging: _Options) -> _Options:
    """Have what a store keeps decoded count against the limit of its region.

    Of a limit that is a size it takes half at most, and of a budget that was made for the arrays of
    one file half of what these have left of its half: unless two chunks are more. So it is with a
    `Budget` of the user's, which says the same of its limit as before, and has it all back when the
    arrays are closed. A budget that would have less than 64 blocks left stays as it is, and what is
    kept comes on top.
    """
    asked: ModelessOptions = paging
    limit = asked.get("resident_limit")
    block = nbytes_of(asked.get("block_size", _BLOCK), "block_size")
    if is_size(limit):
        whole = nbytes_of(limit, "resident_limit")
        left = whole - store._keep_at_most(whole // 2)
        paging = copy.copy(paging)
        paging["resident_limit"] = max(left, min(_FEWEST_BLOCKS * block, whole))
    elif isinstance(limit, Budget) and limit._spare is not None:
        with _sparing:
            kept = store._keep_at_most(limit._spare // 2)
            limit._spare = max(limit._spare - kept, 0)
            left = limit.limit - kept
            # Not where other regions may soon need all there is.
            if left >= _MANY_BLOCKS * block:
                # It is in force all the same; or what is pinned needs it now.
                with contextlib.suppress(TimeoutError, ValueError):
                    limit.resize(left)
    elif isinstance(limit, Budget):
        with _sparing:
            spare = limit.limit // 2 - limit._kept_nbytes
            kept = store._keep_at_most(max(spare, 0) // 2)
            if limit.limit - limit._kept_nbytes - kept >= _MANY_BLOCKS * block:
                limit._keep(store, kept)
    return paging


class Decoded:
    """Arrays of one file or folder, each with a region of its own once it is wanted.

    Parameters
    ----------
    source : Source
        A zarr, or an HDF5 file.
    paging : PagingOptions
        Of each region; a limit that holds for all is a `Budget`.
    """

    def __init__(self, source: Source, paging: PagingOptions) -> None:
        self._source, self._paging = source, paging
        self._making = threading.RLock()
        self._regions: dict[str, tuple[PagedMemory, SlicedStore]] = {}

    @property
    def regions(self) -> list[PagedMemory]:
        """The regions that were made so far."""
        return [region for region, _ in self._regions.values()]

    def array(self, name: str) -> PagedArray:
        """Return an array; its region is made the first time."""
        with self._making:
            if name not in self._regions or is_gone(self._regions[name][0]):
                writable = self._paging.get("mode") == "r+"
                with decoded_store(self._source, name, writable=writable) as store:
                    region = PagedMemory(store, **with_room(store, self._paging))
                region._forgettable = True
                self._regions[name] = region, store
            region, store = self._regions[name]
            return region.asarray(store.dtype, store.shape).view(PagedArray)

    def close(self) -> None:
        """Close the regions; BufferError while there are arrays."""
        for region in self.regions:
            region.close()


class Hierarchy(Decoded):
    """All arrays of a zarr group, by their paths in it."""

    def __init__(self, source: Source, paging: PagingOptions) -> None:
        super().__init__(source, paging)
        place = source.path or source.text
        if source.path is not None and not os.path.exists(place):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        self.names = dict.fromkeys(arrays_in(place, source.options))

    def array(self, name: str) -> PagedArray:
        """Return an array; KeyError where there is none of that name."""
        if name not in self.names:
            raise KeyError(missing(str(self._source), name, self.names))
        return super().array(name)

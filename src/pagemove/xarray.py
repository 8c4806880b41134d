"""Datasets of xarray over paged arrays: ``xarray.open_dataset(path, engine="pagemove")``."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from xarray.backends import AbstractDataStore, BackendArray, BackendEntrypoint
from xarray.core import indexing

from pagemove.paging.array import PagedArray
from pagemove.paging.arrays import PagedArrays, open_arrays, under_one_limit
from pagemove.paging.decoded import with_room
from pagemove.paging.open import open_array
from pagemove.paging.options import AUTO
from pagemove.paging.reference import reference
from pagemove.paging.sizes import nbytes_of
from pagemove.stores.chunked import hdf5_dataset, zarr_array
from pagemove.stores.extras import needed
from pagemove.stores.sliced import SlicedStore

if TYPE_CHECKING:
    from pagemove.paging.options import Limit, ModelessOptions, Prefetch, Size

__all__ = ["PagemoveBackendEntrypoint"]


def __dir__() -> list[str]:
    # For completion: what is imported here is left out.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class PagemoveBackendEntrypoint(BackendEntrypoint):
    """The engine ``"pagemove"``: variables of netCDF-4, HDF5 and zarr in paged memory.

    xarray finds it by its name, and only by that: no file is opened with it unless ``engine`` says
    so. Names, dimensions and attributes come from xarray's own engines (h5netcdf, zarr), which
    open the file as well; the items are read by pagemove.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, xarray as xr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "weather.nc")
    ...     heights = xr.DataArray(np.arange(1e6).reshape(1000, 1000), dims=("y", "x"))
    ...     xr.Dataset({"height": heights}).to_netcdf(path, engine="h5netcdf")
    ...     with xr.open_dataset(path, engine="pagemove", resident_limit="1MiB") as weather:
    ...         float(weather.height[-1, -1]), type(weather.height.data).__name__
    (999999.0, 'PagedArray')
    """

    description: ClassVar[str] = "netCDF-4, HDF5 and zarr in paged memory, under a limit"

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Leave every file to the engine that xarray would use without this one."""
        return False

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: Any = True,
        decode_times: Any = True,
        concat_characters: Any = True,
        decode_coords: Any = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: bool | None = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        resident_limit: Limit | None = None,
        block_size: Size = 65536,
        prefetch: Prefetch = "auto",
        store_timeout: float = 5.0,
    ) -> xr.Dataset:
        """Open a dataset; what xarray calls for `xarray.open_dataset`.

        Parameters
        ----------
        filename_or_obj : str or path-like
            A local file of netCDF-4 or HDF5, or a zarr: a folder, or ``x.zarr.zip``.
        mask_and_scale, decode_times, concat_characters, decode_coords : optional
            As for `xarray.open_dataset`, which decodes, as for all its engines.
        drop_variables, use_cftime, decode_timedelta : optional
            As for `xarray.open_dataset`.
        group : str, optional
            Path of a group in the file.
        resident_limit : int, str or Budget, optional
            The most bytes that all paged variables together have in memory. By default
            ``"auto"``, as for `pagemove.open_array`.
        block_size, prefetch, store_timeout : optional
            As for `pagemove.PagedMemory`. Variables of up to a block are read by the other engine,
            into ordinary memory.

        Returns
        -------
        xarray.Dataset
            Read-only. Nothing but what is about the variables, and coordinates that are indexes, is
            read.

        Raises
        ------
        ValueError
            It is neither HDF5 nor zarr.
        TypeError
            It is not a path.
        ImportError
            h5netcdf or zarr is not installed.
        OSError
            It cannot be opened.

        Warns
        -----
        UserWarning
            A variable of more than a block has items of variable length, which cannot be paged: it
            is read whole where it is used.

        Notes
        -----
        A contiguous variable is paged from its place in the file; one in chunks is decoded in a
        process of its own (`pagemove.stores.SlicedStore`), when an item of it is first needed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, xarray
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "heights.nc")
        ...     heights = xarray.Dataset({"height": ("x", np.arange(100_000.0))})
        ...     heights.to_netcdf(path, engine="h5netcdf")
        ...     with xarray.open_dataset(path, engine="pagemove", resident_limit="1MiB") as data:
        ...         float(data["height"].max(skipna=False))
        99999.0
        """
        path = _checked_path(filename_or_obj)
        paging = under_one_limit(
            {
                "resident_limit": AUTO if resident_limit is None else resident_limit,
                "block_size": block_size,
                "prefetch": prefetch,
                "store_timeout": store_timeout,
            }
        )
        regions = _Regions(path, group, paging)
        store = _Paged(_described(path, group), regions)
        try:
            return xr.backends.StoreBackendEntrypoint().open_dataset(
                store,
                mask_and_scale=mask_and_scale,
                decode_times=decode_times,
                concat_characters=concat_characters,
                decode_coords=decode_coords,
                drop_variables=drop_variables,
                use_cftime=use_cftime,
                decode_timedelta=decode_timedelta,
            )
        except BaseException:
            store.close()
            raise


def _checked_path(source: Any) -> str:
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"engine 'pagemove' opens paths, not {type(source).__name__}: the process that decodes "
            "a variable opens the file itself"
        )
    path = os.fspath(source)
    if "://" in path:
        raise ValueError(
            f"engine 'pagemove' opens local files, not the URL {path.partition('?')[0]!r}: copy it "
            "here, or open a contiguous variable of HDF5 alone with pagemove.open_array"
        )
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise FileNotFoundError(2, os.strerror(2), path)
    return path


def _is_zarr(path: str) -> bool:
    return os.path.isdir(path) or path.lower().endswith(".zarr.zip")


def _described(path: str, group: str | None) -> Any:
    """Open the store of xarray that knows the names, dimensions and attributes of a file."""
    if _is_zarr(path):
        needed("zarr", "xarray")
        return xr.backends.ZarrStore.open_group(path, mode="r", group=group, consolidated=False)
    with open(path, "rb") as file:
        first = file.read(8)
    if first.startswith(b"CDF"):
        raise ValueError(
            f"{path} is a classic netCDF file, which engine 'pagemove' does not read: convert it "
            "(nccopy -k nc4), or use engine='scipy', which maps it"
        )
    if not needed("h5py", "xarray").is_hdf5(path):
        raise ValueError(
            f"{path} is neither HDF5, netCDF-4 nor zarr by how it begins: {first!r}; it was cut "
            "short, or another engine is for it"
        )
    needed("h5netcdf", "xarray")
    return xr.backends.H5NetCDFStore.open(path, group=group, phony_dims="access")


def _identity(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    # What is in a folder changes by itself.
    content = () if os.path.isdir(path) else (found.st_size, found.st_mtime_ns)
    return found.st_dev, found.st_ino, *content


class _Regions:
    """The paged variables of a file, opened when they are first needed, under one limit."""

    def __init__(self, path: str, group: str | None, paging: ModelessOptions) -> None:
        self.path, self.paging = path, paging
        self._group = (group or "").strip("/")
        self._identity = _identity(path)
        self._opening = threading.RLock()
        self._in_place: PagedArrays | None = None
        self._closed = False

    def open(self, name: str) -> PagedArray:
        """Open a variable of the group."""
        with self._opening:
            if self._closed:
                raise ValueError(f"the dataset of {self.path} is closed: open it again")
            name = f"{self._group}/{name}".lstrip("/")
            if _is_zarr(self.path):
                return self._decoded(functools.partial(zarr_array, self.path, name))
            if self._in_place is None:
                self._check_unchanged()
                self._in_place = open_arrays(self.path, **self.paging)
            # netCDF-4 calls one so that has the name of a dimension, and is along others.
            folder, _, last = name.rpartition("/")
            alias = f"{folder}/_nc4_non_coord_{last}".lstrip("/")
            name = alias if alias in self._in_place else name
            # Never written, in another file, or of a type that h5py converts.
            with contextlib.suppress(ValueError, TypeError):
                return self._in_place[name]
            return self._decoded(functools.partial(hdf5_dataset, self.path, name))

    def _check_unchanged(self) -> None:
        """See that what is opened by its path is what the dataset was opened from."""
        if _identity(self.path) != self._identity:
            raise OSError(
                errno.ESTALE,
                "the file is another, or was changed, since the dataset was opened: open the "
                "dataset again",
                self.path,
            )

    def _decoded(self, opener: Callable[[], Any]) -> PagedArray:
        self._check_unchanged()
        with SlicedStore(opener) as store:
            return open_array(store, **with_room(store, self.paging))

    def close(self) -> None:
        """Open nothing more. Regions end with the last of their arrays."""
        with self._opening:
            self._closed = True
            if self._in_place is not None:
                with self._in_place:
                    pass
                self._in_place = None


class _Variable(BackendArray):
    """A paged array that is opened when an item of it is first needed.

    Pickled it is a reference: elsewhere it is another region over the same file.
    """

    def __init__(
        self, opener: Callable[[], Any], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._opener = opener
        self._opening = threading.Lock()
        self._array: Any = None

    def _opened(self) -> Any:
        with self._opening:
            if self._array is None:
                array = self._opener()
                if (array.shape, array.dtype) != (self.shape, self.dtype):
                    raise ValueError(
                        f"a variable is {self.dtype} of shape {self.shape} by its description, and "
                        f"{array.dtype} of shape {array.shape} as it is stored: the file has "
                        "changed; open the dataset again"
                    )
                self._array = array
            return self._array

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return a view where NumPy would, of paged memory."""
        adapter: Any = indexing.NumpyIndexingAdapter
        return indexing.apply_indexer(adapter(self._opened()), key)

    def __reduce__(self) -> Any:
        return _Variable, (reference(self._opened()).open, self.shape, self.dtype)

    def close(self) -> None:
        """Forget the array, and with it the region unless others have views."""
        with self._opening:
            self._array = None


class _Paged(AbstractDataStore):
    """What another store says of a file, with the items of large variables paged."""

    __slots__ = ("_described", "_paged", "_regions")

    def __init__(self, described: Any, regions: _Regions) -> None:
        self._described, self._regions = described, regions
        self._paged: list[_Variable] = []

    def get_variables(self) -> Mapping[Any, xr.Variable]:
        """Return the variables as they are stored."""
        least = nbytes_of(self._regions.paging["block_size"], "block_size")
        found: dict[Any, xr.Variable] = dict(self._described.get_variables())
        too_long = [
            name
            for name, variable in found.items()
            if variable.size * max(variable.dtype.itemsize, 1) > least and not _can_page(variable)
        ]
        if too_long:
            warnings.warn(
                f"{self._regions.path}: {', '.join(map(str, too_long))} cannot be paged, for items "
                "of variable length are not in one place: they are read whole where they are used, "
                "beyond the limit; leave them out with drop_variables, or write them with a dtype "
                "of fixed length",
                UserWarning,
                stacklevel=5,
            )
        for name, variable in found.items():
            if _can_page(variable) and variable.nbytes > least:
                opener = functools.partial(self._regions.open, str(name))
                paged = _Variable(opener, variable.shape, variable.dtype)
                self._paged.append(paged)
                data = indexing.LazilyIndexedArray(paged)
                found[name] = xr.Variable(
                    variable.dims, data, variable.attrs, variable.encoding, fastpath=True
                )
        return found

    def get_attrs(self) -> Mapping[Any, Any]:
        """Return the attributes of the dataset."""
        attributes: Mapping[Any, Any] = self._described.get_attrs()
        return attributes

    def get_encoding(self) -> dict[Any, Any]:
        """Return what else is to be known for writing it again."""
        encoding: dict[Any, Any] = self._described.get_encoding()
        return encoding

    def close(self) -> None:
        """Close the file. Arrays that the program has of it stay as they are."""
        for paged in self._paged:
            paged.close()
        self._regions.close()
        self._described.close()

    def __reduce__(self) -> Any:
        # Of a dataset that is pickled: there, every variable comes by reference.
        return _Elsewhere, ()


class _Elsewhere(AbstractDataStore):
    """The store of a dataset that came from another process."""

    __slots__ = ()


def _can_page(variable: xr.Variable) -> bool:
    return not variable.dtype.hasobject and variable.dtype.itemsize > 0

"""Files whose arrays are in chunks as stores: zarr and HDF5."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping
from typing import Any, Literal

from pagemove.stores.extras import needed
from pagemove.stores.sliced import SlicedStore
from pagemove.stores.urls import without_secret

_HDF5 = (".h5", ".hdf5", ".he5", ".hdf", ".nc", ".h5ad")


def chunked_store(
    source: str | os.PathLike[str], name: str = "", *, writable: bool = False, **options: Any
) -> SlicedStore | None:
    """Open an array of a zarr hierarchy, or a data set of an HDF5 file, by the name of the file.

    Parameters
    ----------
    source : str or path-like
        ``x.zarr``, a folder or a zip file, or ``x.h5``; the array may follow a ``#``.
    name : str
        Of the array; of a zarr that is one array, nothing.
    writable : bool
        As for `SlicedStore`.
    **options
        `cache`, `chunks` of `SlicedStore`.

    Returns
    -------
    SlicedStore or None
        None: the name is that of neither.

    Raises
    ------
    ImportError
        zarr or h5py is not installed.
    KeyError
        There is no such array.
    TypeError
        It is a group, or has items of variable length.
    OSError, ValueError
        As the library, and `SlicedStore`.

    Examples
    --------
    >>> import tempfile
    >>> import h5py, numpy as np
    >>> from pagemove.stores.chunked import chunked_store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(f"{folder}/x.h5", "w") as file:
    ...         _ = file.create_dataset("heights", data=np.arange(1000), chunks=(100,))
    ...     with chunked_store(f"{folder}/x.h5", "heights") as store:
    ...         store.nbytes
    8000
    """
    path, _, after = os.fspath(source).partition("#")
    name = name or after
    kind = os.path.splitext(path.rstrip("/"))[1].lower()
    if kind in _HDF5:
        opener: Any = functools.partial(hdf5_dataset, os.path.abspath(path), name, writable)
    elif kind == ".zarr" or path.lower().endswith(".zarr.zip"):
        opener = functools.partial(zarr_array, os.path.abspath(path), name, writable)
    else:
        return None
    return SlicedStore(opener, writable=writable, path=path if writable else None, **options)


def zarr_array(path: str, name: str = "", writable: bool = False) -> Any:
    """Open an array of zarr, of either version of the format."""
    needed("zarr", "zarr")
    if not os.path.exists(path):
        # It would make one.
        raise FileNotFoundError(2, os.strerror(2), path)
    return zarr_at(path, {}, name, mode="r+" if writable else "r")


def zarr_at(
    place: str, options: Mapping[str, Any], name: str = "", mode: Literal["r", "r+"] = "r"
) -> Any:
    """Open an array, or a group, of zarr at a path or a URL, with what fsspec needs for that."""
    zarr = needed("zarr", "zarr")
    found = zarr.open(place, mode=mode, storage_options=dict(options) or None)
    found = found[name] if name else found
    if isinstance(found, zarr.Group):
        raise TypeError(
            f"{without_secret(place)}#{name} is a group: name one of its arrays, "
            f"{', '.join(_arrays_of(found)[:20])}"
        )
    return found


def arrays_in(place: str, options: Mapping[str, Any]) -> list[str]:
    """List the arrays of a zarr group at a path or a URL.

    Raises
    ------
    ValueError
        It is an array itself; none are listed, which a web server does not do by itself.
    """
    zarr = needed("zarr", "zarr")
    group = zarr.open(place, mode="r", storage_options=dict(options) or None)
    shown = without_secret(place)
    if isinstance(group, zarr.Array):
        raise ValueError(f"{shown} is one array, and no group: pagemove.open_array")
    names = _arrays_of(group)
    if not names:
        raise ValueError(
            f"{shown} lists no arrays: it has none, or is behind a server that does not list files "
            "(zarr.consolidate_metadata has it list them); open one by its name with open_array"
        )
    return names


def _arrays_of(group: Any) -> list[str]:
    array = needed("zarr", "zarr").Array
    return sorted(name for name, each in group.members(max_depth=None) if isinstance(each, array))


def hdf5_dataset(path: str, name: str = "", writable: bool = False) -> Any:
    """Open a data set of an HDF5 file, which it closes with itself."""
    h5py = needed("h5py", "hdf5")
    try:
        file = h5py.File(path, "r+" if writable else "r")
    except BlockingIOError as error:
        raise BlockingIOError(
            errno.EAGAIN,
            f"{path} is open elsewhere, in this process or another, and HDF5 lets "
            f"{'nobody else write' if writable else 'nobody else read what is being written'}: "
            "close it there, or set HDF5_USE_FILE_LOCKING=FALSE in the environment before HDF5 is "
            f"imported (h5py: {error})",
        ) from error
    try:
        found = file[name] if name else file
        if not isinstance(found, h5py.Dataset):
            names: list[str] = []
            file.visititems(
                lambda at, each: names.append(at) if isinstance(each, h5py.Dataset) else None
            )
            raise TypeError(
                f"{path}#{name} is a group: name one of its data sets, {', '.join(names[:20])}"
            )
    except BaseException:
        file.close()
        raise
    return found

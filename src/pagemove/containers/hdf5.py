"""HDF5: contiguous datasets, whose places h5py knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pagemove.containers.layout import ChunkedError, Known, Layout, Span, check_shape, refused
from pagemove.containers.reading import Reading, ReadingFile
from pagemove.stores.base import Store
from pagemove.stores.extras import needed

# Of what HDF5 reports, of names that are no text, and of numbers that no file can have.
_H5PY_RAISES = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)


def read(reading: Reading) -> Known:
    """List the datasets; ValueError where the file cannot be read."""
    h5py = needed("h5py", "hdf5")
    found: dict[str, Callable[[], Layout]] = {}
    spans: list[Span] = []
    chunked: list[str] = []

    def visit(name: str, thing: Any) -> None:
        if not isinstance(thing, h5py.Dataset):
            return
        what = f"{reading.what}: dataset {name!r}"
        try:
            layout = _layout(h5py, thing, what, reading.nbytes)
        except _H5PY_RAISES as error:
            found[name] = _refused(what, error)
            if isinstance(error, ChunkedError):
                chunked.append(name)
            return
        found[name] = partial(lambda known: known, layout)
        spans.append(Span(layout.offset, layout.nbytes, max(layout.dtype.alignment, 1)))

    try:
        with h5py.File(ReadingFile(reading), "r") as file:
            file.visititems(visit)
    except _H5PY_RAISES as error:
        raise ValueError(
            f"{reading.what} begins like an HDF5 file, and h5py cannot read it: "
            f"{str(error)[:300]}; it was cut short or damaged, write it again"
        ) from None
    return Known("hdf5", reading.what, found, spans, has_chunks=bool(chunked))


def dataset_in(store: Store, name: str) -> Any:
    """Open a data set of a file in a store, to be sliced; it closes the file with itself."""
    h5py = needed("h5py", "hdf5")
    return h5py.File(ReadingFile(Reading(store)), "r")[name]


def _refused(what: str, error: Exception) -> Callable[[], Layout]:
    """Return what raises an error of `_layout`, or what h5py raises in it, which names no file."""
    if str(error).startswith(what):
        return refused(type(error), str(error))
    return refused(
        ValueError, f"{what} cannot be read by h5py: {str(error)[:300]}; the file may be damaged"
    )


def _layout(h5py: Any, dataset: Any, what: str, nbytes: int) -> Layout:
    properties = dataset.id.get_create_plist()
    dtype, shape = dataset.dtype, dataset.shape
    if dtype.hasobject:
        raise TypeError(
            f"{what} is of variable length, so its items are elsewhere in the file: write it with "
            "items of one length"
        )
    if shape is None:
        raise ValueError(f"{what} has no shape, and no items")
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_nfilters():
        raise ChunkedError(
            f"{what} is chunked, compressed or within the header, so its bytes are not in the file "
            "as they are: open it alone with open_array, which decodes it in a process of its own, "
            "or write it without chunks and compression (h5repack -l CONTI -f NONE)"
        )
    if properties.get_external_count():
        raise ValueError(f"{what} is in other files: open those with open_array and a dtype")
    if not _is_as_stored(h5py, dataset, dtype):
        raise TypeError(f"{what} is of a type that h5py converts: NumPy has none that is stored so")
    # h5py keeps in its dtypes what they were in the file.
    plain = np.dtype(dtype.str) if dtype.fields is None and dtype.subdtype is None else dtype
    needed_nbytes = check_shape(what, shape, plain.itemsize)
    if not needed_nbytes:
        return Layout(plain, shape, fortran=False, offset=0)
    offset = dataset.id.get_offset()
    # Of one behind a user block that has no place the offset is not None, and means nothing.
    if offset is None or dataset.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        raise ValueError(
            f"{what} was never written, so it has no bytes in the file: all its items are "
            f"{dataset.fillvalue}"
        )
    if offset + needed_nbytes > nbytes:
        raise ValueError(
            f"{what} ends at byte {offset + needed_nbytes}, and the file has {nbytes}: it was cut "
            "short; copy or download it again"
        )
    return Layout(plain, shape, fortran=False, offset=offset)


def _is_as_stored(h5py: Any, dataset: Any, dtype: np.dtype[Any]) -> bool:
    """Whether items are in the file as NumPy has them."""
    stored = dataset.id.get_type()
    if stored.get_class() == h5py.h5t.STRING:
        return bool(stored.get_size() == dtype.itemsize)
    return bool(h5py.h5t.py_create(dtype, logical=True).equal(stored))

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

    def note(file: Any, link: bytes) -> None:
        name = link.decode("utf-8", "surrogateescape")
        what = f"{reading.what}: dataset {name!r}"
        try:
            kind = file.get(link, getlink=True)
            if isinstance(kind, h5py.ExternalLink):
                raise ValueError(
                    f"{what} is a link to another file, {kind.filename!r}: open {kind.path!r} of it"
                )
            thing = file.get(link)
            if not isinstance(thing, h5py.Dataset):  # or a link that leads nowhere
                return
            _check_in(h5py, file, thing, what)
            layout = _layout(h5py, thing, what, reading.nbytes)
        except _H5PY_RAISES as error:
            found[name] = _refused(what, error)
            if isinstance(error, ChunkedError):
                chunked.append(name)
            return
        found[name] = partial(lambda known: known, layout)
        spans.append(Span(layout.offset, layout.nbytes, max(layout.dtype.alignment, 1)))

    links: list[bytes] = []
    try:
        with h5py.File(ReadingFile(reading), "r") as file:
            # By links, not by what they lead to: a data set has all of its names. What is raised
            # within a visit, in a damaged file, h5py may make a SystemError of.
            file.id.links.visit(links.append)
            for link in links:
                note(file, link)
    except _H5PY_RAISES as error:
        raise ValueError(
            f"{reading.what} begins like an HDF5 file, and h5py cannot read it: "
            f"{str(error)[:300]}; it was truncated or damaged, write it again"
        ) from None
    return Known("hdf5", reading.what, found, spans, has_chunks=bool(chunked))


def dataset_in(store: Store, name: str) -> Any:
    """Open a dataset of a file in a store, to be sliced; it closes the file with itself.

    Raises
    ------
    ValueError
        Its items are in other files, by a link or as a virtual dataset.
    """
    h5py = needed("h5py", "hdf5")
    reading = Reading(store)
    file = h5py.File(ReadingFile(reading), "r")
    dataset, what = file[name], f"{reading.what}: dataset {name!r}"
    if isinstance(dataset, h5py.Dataset):
        _check_in(h5py, file, dataset, what)
        if dataset.is_virtual and any(part.file_name != "." for part in dataset.virtual_sources()):
            raise ValueError(
                f"{what} is virtual, of datasets in other files: download all of them, and open it "
                "by its path"
            )
    return dataset


def _check_in(h5py: Any, file: Any, dataset: Any, what: str) -> None:
    """Refuse what a link leads to through another file: h5py was given this one as an object.

    It takes that object for the other file as well, and a dataset of the same name for the other's.
    """
    if h5py.h5o.get_info(dataset.id).fileno != h5py.h5o.get_info(file.id).fileno:
        raise ValueError(f"{what} is a link that leads to another file: open the dataset in that")


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
            f"{what} ends at byte {offset + needed_nbytes}, and the file has {nbytes}: it was "
            "truncated; copy or download it again"
        )
    return Layout(plain, shape, fortran=False, offset=offset)


def _is_as_stored(h5py: Any, dataset: Any, dtype: np.dtype[Any]) -> bool:
    """Whether items are in the file as NumPy has them."""
    stored = dataset.id.get_type()
    if stored.get_class() == h5py.h5t.STRING:
        return bool(stored.get_size() == dtype.itemsize)
    return bool(h5py.h5t.py_create(dtype, logical=True).equal(stored))

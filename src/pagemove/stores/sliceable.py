"""What can be sliced: its shape, its chunks, and whether it can be assigned to."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pagemove.stores.boxes import Sizes

# Whose items are assigned to without anything reaching a disk.
_NOT_ASSIGNABLE = ("dask", "xarray")


def called(opener: Callable[[], Any] | str) -> Any:
    """Open the array: by a function, or by one that is named ``"module:function"``."""
    if isinstance(opener, str):
        module, _, name = opener.partition(":")
        return getattr(importlib.import_module(module), name)()
    return opener()


def described(array: Any) -> tuple[Sizes, np.dtype[Any]]:
    """Return shape and dtype of what can be paged; say why it cannot be."""
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None or not hasattr(array, "__getitem__"):
        raise TypeError(
            f"{type(array).__name__} cannot be sliced: an array with shape, dtype and [slices] is "
            "needed; of a group or data set open one variable"
        )
    kind = np.dtype(getattr(dtype, "numpy_dtype", dtype))
    if kind.hasobject or kind.itemsize == 0:
        raise TypeError(
            f"items of {kind} cannot be paged: they are Python objects or of variable length; save "
            "them with a dtype of fixed length"
        )
    sizes = tuple(int(size) for size in shape)
    if not math.prod(sizes):
        raise ValueError(f"an array of shape {sizes} has no items: there is nothing to page")
    return sizes, kind


def chunks_of(array: Any, *, writable: bool) -> Sizes:
    """Return the shape of what it decodes at once; of what it encodes at once."""
    shards = getattr(array, "shards", None) if writable else None
    chunks: Any = shards or getattr(array, "chunksize", None)  # dask's
    if chunks is None:
        chunks = getattr(array, "encoding", {}).get("preferred_chunks")  # xarray's
        if isinstance(chunks, dict):
            chunks = [
                chunks.get(name, size) for name, size in zip(array.dims, array.shape, strict=True)
            ]
    layout = getattr(array, "chunk_layout", None)  # tensorstore's
    if chunks is None and layout is not None:
        chunks = (layout.write_chunk if writable else layout.read_chunk).shape
    if chunks is None:
        chunks = getattr(array, "chunks", None)
    try:
        return tuple(max(int(size), 1) for size in chunks)
    except TypeError:
        # Not in chunks: any rows will do.
        return (1, *array.shape[1:]) if array.shape else ()


def check_assignable(array: Any) -> None:
    """Raise ValueError unless what is assigned to it is stored."""
    top = type(array).__module__.partition(".")[0]
    in_memory = isinstance(array, np.ndarray) and not isinstance(array, np.memmap)
    fixed = getattr(array, "read_only", False) or (
        isinstance(array, np.memmap) and not array.flags.writeable
    )
    mode = getattr(getattr(array, "file", None), "mode", "r+")
    if in_memory or fixed or mode == "r" or top in _NOT_ASSIGNABLE or not _assigns(array):
        raise ValueError(
            f"{type(array).__name__} cannot be written through slices here: it is read-only, or "
            "what is assigned reaches no file; open it for writing, or page it in mode 'r', or "
            "'c', which keeps changes private"
        )


def _assigns(array: Any) -> bool:
    return hasattr(type(array), "__setitem__")


def close(array: Any) -> None:
    """Close what has a way for that: a data set of h5py by its file."""
    for owner in (getattr(array, "file", None), array):
        close = getattr(owner, "close", None)
        if callable(close):
            with contextlib.suppress(Exception):
                close()
            return

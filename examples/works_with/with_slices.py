"""What can be sliced, as a store: a tensorstore, an xarray variable, a Dask array, a function.

Each is opened by a function, which the helper process of the region calls.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import pagemove
from pagemove.stores import SlicedStore

SHAPE = (2048, 64, 64)  # 32 MiB of float32
LIMIT = 8 << 20


class Computed:
    """Items that are nowhere, and are computed where they are asked for."""

    shape, dtype = SHAPE, np.dtype("f4")

    def __getitem__(self, key: tuple[slice, ...]) -> Any:
        axes = [np.arange(size)[part] for size, part in zip(self.shape, key, strict=True)]
        first, second, third = np.ix_(*axes)
        return (first + 2 * second + 3 * third).astype(self.dtype)


def with_function() -> Any:
    """Return an object of one's own."""
    return Computed()


def with_tensorstore(path: str) -> Any:
    """Open an array of any driver that TensorStore has."""
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    return tensorstore.open(spec, read=True).result()


def with_xarray(path: str) -> Any:
    """Open a variable of a dataset: decoded, where it is scaled."""
    import xarray

    return xarray.open_zarr(path, consolidated=False, chunks=None)["t"]


def with_dask(path: str) -> Any:
    """Make an array of Dask, whatever its graph does."""
    import dask.array

    return dask.array.from_zarr(path) * 1


def check(kind: str, opener: Any, expected: Any) -> bool:
    """Page it, and say what happened."""
    with SlicedStore(opener) as store:
        array = pagemove.open_array(
            store, resident_limit=LIMIT, block_size="256KiB", store_timeout=60
        )
        same = bool(np.array_equal(array, expected))
        stats = array.region.stats()
    once = stats.store["decoded_nbytes"] / array.nbytes
    within = 0 < stats.resident_nbytes <= LIMIT < array.nbytes
    print(
        f"{kind}: {'the same' if same else 'ANOTHER array'}, {stats.resident_nbytes >> 20} of "
        f"{array.nbytes >> 20} MiB resident, each item decoded {once:.1f} times"
    )
    return same and within and once == 1


def main(kinds: list[str]) -> int:
    """Show those that are named, or all."""
    import zarr

    values = Computed()[tuple(slice(0, size) for size in SHAPE)]
    right = True
    with tempfile.TemporaryDirectory() as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        names = ("time", "y", "x")
        stored = group.create_array(
            "t", shape=SHAPE, dtype="f4", chunks=(64, 64, 64), dimension_names=names
        )
        stored[...] = values
        array = str(Path(folder) / "t")
        openers: dict[str, Any] = {
            "function": with_function,
            "tensorstore": functools.partial(with_tensorstore, array),
            "xarray": functools.partial(with_xarray, folder),
            "dask": functools.partial(with_dask, array),
        }
        for kind in kinds or list(openers):
            right &= check(kind, openers[kind], values)
    print("All as said." if right else "Not as said.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

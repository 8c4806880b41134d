"""The order in which blocks were first needed, kept for the next time."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import numpy.typing as npt

# In bytes from the start of the store, so that regions with other blocks can use it.
_DTYPE = np.dtype("<u8")


def save(path: str | os.PathLike[str], numbers: bytes, block_size: int) -> None:
    """Write the blocks that a pager has recorded to a file, which is replaced as a whole."""
    offsets = np.frombuffer(numbers, np.uint32).astype(_DTYPE) * block_size
    import tempfile  # slow to import, and hardly ever needed

    target = os.fspath(path)
    folder, prefix = os.path.split(target)
    handle, name = tempfile.mkstemp(dir=folder or os.curdir, prefix=prefix)
    try:
        with open(handle, "wb") as file:
            np.save(file, offsets)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def load(path: str | os.PathLike[str], nbytes: int, block_size: int) -> bytes:
    """Read such a file as blocks of a region, each once, in order.

    Raises
    ------
    ValueError
        It is not such a file.
    OSError
        It cannot be read.
    """
    try:
        offsets: npt.NDArray[np.uint64] = np.load(path, allow_pickle=False)
        if offsets.dtype != _DTYPE or offsets.ndim != 1:
            raise ValueError(f"{offsets.dtype} of {offsets.ndim} dimensions")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a record of a working set: {error}; record() makes one"
        ) from error
    numbers = offsets[offsets < nbytes] // np.uint64(block_size)
    _, first = np.unique(numbers, return_index=True)
    return bytes(numbers[np.sort(first)].astype(np.uint32))

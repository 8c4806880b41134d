"""The order in which blocks were first needed, kept for the next time."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

# In bytes from the start of the store, so that regions with other blocks can use it.
_DTYPE = np.dtype("<u8")
_SMALLEST_BLOCK = 4096
# Offsets that are read whatever the length of the store: it may have been longer.
_ENOUGH = 1 << 22


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
        offsets = _read(path, max(nbytes // _SMALLEST_BLOCK + 1, _ENOUGH))
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a record of a working set: {error}; record() makes one"
        ) from error
    numbers = offsets[offsets < nbytes] // np.uint64(block_size)
    _, first = np.unique(numbers, return_index=True)
    return bytes(numbers[np.sort(first)].astype(np.uint32))


def _read(path: str | os.PathLike[str], most: int) -> npt.NDArray[np.uint64]:
    """Read offsets, no more than there can be; whatever else the file is, little of it is read."""
    # O_NONBLOCK: else opening a pipe waits for a process at its other end.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version} of the .npy format")
        try:
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        # NumPy's parser raises a different exception for every kind of malformed header.
        except Exception as error:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise ValueError(f"its header cannot be read: {reason}") from None
        if dtype != _DTYPE or len(shape) != 1:
            raise ValueError(f"{dtype} of {len(shape)} dimensions")
        if not 0 <= shape[0] <= most:
            raise ValueError(f"{shape[0]} offsets, and {most} are the most that are read")
        data = file.read(shape[0] * _DTYPE.itemsize + 1)
        if len(data) != shape[0] * _DTYPE.itemsize:
            raise ValueError(f"it does not have the length of {shape[0]} offsets")
        return np.frombuffer(data, _DTYPE)

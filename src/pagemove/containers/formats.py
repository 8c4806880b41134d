"""Which format a file has, by how it begins; and its contents."""

from __future__ import annotations

import importlib

from pagemove.containers import safetensors
from pagemove.containers.layout import Contents
from pagemove.containers.reading import Reading

_MAGIC = {
    b"PK\3\4": "npz",
    b"PK\5\6": "npz",
    b"GGUF": "gguf",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"ARROW1": "arrow",
    b"FEA1": "feather 1",
}
_LONGEST = 8
# HDF5 may begin with something else: its own header is then at a power of two.
_HDF5_AT = (512, 1024, 2048)
_NAMES = ".npz, .safetensors, .gguf, .h5 and .arrow or .feather"


def format_of(reading: Reading) -> str | None:
    """Return the format of a file that holds arrays by name; None: it is none that is known."""
    head = reading.head(_LONGEST)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if safetensors.is_one(reading):
        return "safetensors"
    if head[:4] == b"\x93NUM" or not reading.is_near:
        return None
    hdf5 = next(magic for magic, name in _MAGIC.items() if name == "hdf5")
    for at in _HDF5_AT:
        if at + _LONGEST <= reading.nbytes and reading.read(at, _LONGEST) == hdf5:
            return "hdf5"
    return None


def contents_of(reading: Reading) -> Contents:
    """Read the header.

    Raises
    ------
    ValueError
        It is of no format that is known, or damaged.
    ImportError
        What reads the format is not installed.
    """
    what, name = reading.what, format_of(reading)
    if name == "safetensors":
        return safetensors.read(reading)
    if name == "feather 1":
        raise ValueError(
            f"{what} is Feather of version 1, which is not read: write it again with "
            "pyarrow.feather.write_feather(..., compression='uncompressed')"
        )
    if name is None:
        if reading.head(6) == b"\x93NUMPY":
            raise ValueError(f"{what} is a .npy file, which is one array: pagemove.open_array")
        raise ValueError(
            f"{what} does not begin like a file that holds arrays by name ({_NAMES}): page it with "
            "pagemove.open_array, with a dtype and an offset"
        )
    contents: Contents = importlib.import_module(f"pagemove.containers.{name}").read(reading)
    return contents

"""Compressed memory in this process: what `PagedMemory` is over where it has no store."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, NoReturn

from pagemove._native import pager
from pagemove.paging.sizes import nbytes_of, text_of
from pagemove.stores import ranges
from pagemove.stores.base import Store

if TYPE_CHECKING:
    from pagemove.paging.options import Size


def store_limit_of(store_limit: Size | None) -> int | None:
    """Return the bytes of memory that compressed blocks may take; ValueError, TypeError."""
    if store_limit is None:
        return None
    found = nbytes_of(store_limit, "store_limit")
    if not 0 < found < 2**63:
        raise ValueError(
            f"store_limit must be a positive number of bytes, or None for no limit, not "
            f"{store_limit!r}"
        )
    return found


class CompressedMemory(Store):
    """Blocks compressed by the pager's own threads, in the memory of this process.

    Only the region that is made over it has what is in it.

    Parameters
    ----------
    nbytes : int
        Length.
    store_limit : int or str, optional
        The most bytes of memory that blocks take which are not resident.
    spill : path-like, optional
        A directory for blocks that do not shrink, or have no room.

    Raises
    ------
    ValueError
        The length or the limit is not positive; the directory is none.
    """

    restartable = False

    def __init__(
        self,
        nbytes: int,
        *,
        store_limit: Size | None = None,
        spill: str | os.PathLike[str] | None = None,
    ) -> None:
        self._nbytes = ranges.checked_length(nbytes)
        self.store_limit = store_limit_of(store_limit)
        self.spill = None if spill is None else os.path.abspath(os.fspath(spill))
        if self.spill is not None and not stat.S_ISDIR(os.stat(self.spill).st_mode):
            raise NotADirectoryError(f"spill must be a directory, and {self.spill} is none")

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._nbytes

    @property
    def writable(self) -> bool:
        """True."""
        return True

    @property
    def compression(self) -> tuple[int, bytes | None]:
        """As the pager takes it: the limit, 0 for none, and the directory."""
        return self.store_limit or 0, None if self.spill is None else os.fsencode(self.spill)

    def read_into(self, offset: int, buffer: Any) -> NoReturn:
        """Raise: the bytes are the region's."""
        raise self._refusal("read")

    def write(self, offset: int, data: Any) -> NoReturn:
        """Raise: the bytes are the region's."""
        raise self._refusal("write")

    def _refusal(self, operation: str) -> ValueError:
        return ValueError(
            f"cannot {operation} {self!r} without its region, which has the bytes: {operation} "
            "the region"
        )

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"{self!r} does not pickle, for its bytes are its region's: copy an array")

    def __repr__(self) -> str:
        most = "" if self.store_limit is None else f", store_limit={text_of(self.store_limit)!r}"
        where = "" if self.spill is None else f", spill={self.spill!r}"
        return f"CompressedMemory({self.nbytes}{most}{where})"


def memory_of(
    nbytes: int,
    block_size: Size,
    store_limit: Size | None,
    spill: str | os.PathLike[str] | None,
) -> Store:
    """Make compressed memory: in this process where there is a library, else by a helper.

    With `spill` it is in this process always: without a library nothing shrinks, and goes there.
    """
    if pager.codec() is not None or spill is not None:
        return CompressedMemory(nbytes, store_limit=store_limit, spill=spill)
    if store_limit is not None:
        raise ValueError(
            "store_limit is for memory compressed in this process, which needs liblz4.so.1 or "
            "libzstd.so.1: install one (Debian: liblz4-1, Fedora: lz4-libs), or name a directory "
            "with spill"
        )
    from pagemove.stores.compressed import CompressedStore

    try:
        return CompressedStore(nbytes, block_size=nbytes_of(block_size, "block_size"))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "compressed memory needs liblz4.so.1 or libzstd.so.1 of the system (Debian: liblz4-1, "
            f"Fedora: lz4-libs), or the package zstandard: {error}",
            name=error.name,
        ) from error

"""How a region is served: compressed memory by the pager alone, any store as `stored` has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pagemove.paging.compression import CompressedMemory, memory_of
from pagemove.paging.options import Size
from pagemove.stores.base import Store

if TYPE_CHECKING:
    from pagemove.paging.stored import Serving
    from pagemove.stores.filelock import FileLock

# `stored` is imported where there is a store: files, their locks and their links take longer to
# import than everything that `pagemove run` needs to begin a program.


def file_lock(store: Store) -> FileLock | None:
    """Take the lock of a file that the pager is going to write; BlockingIOError if it is taken."""
    if isinstance(store, CompressedMemory):
        return None
    from pagemove.paging import stored

    return stored.file_lock(store)


def label_of(store: Store) -> str:
    """Name a store in messages."""
    if isinstance(store, CompressedMemory):
        return repr(store)
    from pagemove.paging import stored

    return stored.label_of(store)


@contextlib.contextmanager
def serving(
    store: Store, block_size: int, limit: int, *, writes: bool = False, isolated: bool = False
) -> Iterator[tuple[Serving, bytes]]:
    """Return what the pager needs to open a region; see `stored.serving`."""
    if isinstance(store, CompressedMemory):
        served: Serving = {
            "fd": -1,
            "offset": 0,
            "label": os.fsencode(repr(store)),
            "injection": [],
            "helper": None,
            "identities": (),
            "compression": store.compression,
        }
        yield served, b""
        return
    from pagemove.paging import stored

    with stored.serving(store, block_size, limit, writes=writes, isolated=isolated) as found:
        yield found


def store_of(
    store: Store | None,
    nbytes: int | None,
    block_size: Size,
    store_limit: Size | None = None,
    spill: str | os.PathLike[str] | None = None,
) -> Store:
    """Take the store that was passed; for a length alone, one that keeps blocks compressed."""
    if store is not None:
        if nbytes is not None:
            raise TypeError(f"nbytes {nbytes} is for a region without a store, and there is one")
        if store_limit is not None or spill is not None:
            raise TypeError(
                "store_limit and spill are for a region without a store (nbytes), and there is one"
            )
        return store
    if nbytes is None:
        raise TypeError("a region needs a store, or nbytes to be compressed memory")
    return memory_of(nbytes, block_size, store_limit, spill)

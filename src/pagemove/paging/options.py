"""What a region may be asked for: the arguments of `PagedMemory`, checked."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping
from mmap import PAGESIZE as PAGE_SIZE
from types import MappingProxyType
from typing import Literal, NamedTuple, SupportsIndex, TypeAlias, TypedDict, TypeGuard

import numpy as np

from pagemove._native.mapping import Mapping as OwnedMapping
from pagemove._native.pager import Pager
from pagemove.arguments import checked_name, whole_number
from pagemove.paging.available import Share, automatic
from pagemove.paging.budget import Budget, limit_in
from pagemove.paging.sizes import nbytes_of, text_of
from pagemove.stores.base import Store

Mode: TypeAlias = Literal["r", "r+", "c"]
Prefetch: TypeAlias = Literal["auto", "off"]
Fork: TypeAlias = Literal["reopen", "message"]
Size: TypeAlias = SupportsIndex | str
Limit: TypeAlias = Size | Budget

#: The modes, and how the pager numbers them.
MODES: dict[str, int] = {"r": 0, "r+": 1, "c": 2}

LARGEST_BLOCK = 2 << 20
FEWEST_BLOCKS = 4
_MOST_BLOCKS = 2**32 - 1
_MOST_SECONDS = 2**63 / 1e9 - 1
_LARGEST_LIMIT = 2**63 - 1
#: What the resident limit can be besides a size. None: as AUTO.
AUTO, UNLIMITED = "auto", "unlimited"
_SHORTEST_INTERVAL = 10**7  # ns; more often is for nothing


def is_size(limit: Limit | None) -> TypeGuard[Size]:
    """Whether a resident limit is a number of bytes: none of the words, no budget, and not None."""
    word = limit.strip().lower() if isinstance(limit, str) else ""
    return limit is not None and not isinstance(limit, Budget) and word not in (AUTO, UNLIMITED)


class ModelessOptions(TypedDict, total=False):
    """The keywords of `PagedMemory` but `mode`, for those who pass them on."""

    resident_limit: Limit | None
    block_size: Size
    prefetch: Prefetch
    store_timeout: float
    writeback_interval: float | None
    name: str | None
    replay: str | os.PathLike[str] | None
    fork: Fork
    isolated: bool


class PagingOptions(ModelessOptions, total=False):
    """All keywords of `PagedMemory`."""

    mode: Mode


class Checked(NamedTuple):
    """The same, as the pager takes them.

    Attributes
    ----------
    block_size, limit : int
        Bytes; a limit of 0 means none.
    budget : Budget, optional
        Whose limit it is.
    chosen : bool
        Whether the user has said what the limit is to be, or that there is none.
    share : Share, optional
        If not: what it has instead.
    mode : int
        As in `MODES`.
    read_ahead : bool
        Whether blocks are read before they are touched.
    timeout_ns : int
        How long a failing store is tried again.
    writeback_ns : int
        After how long changed blocks are written; 0: when they have to leave.
    name : bytes
        Of the mapping.
    isolated : bool
        Whether its store is to have a helper process of its own.
    """

    block_size: int
    limit: int
    budget: Budget | None
    chosen: bool
    share: Share | None
    mode: int
    read_ahead: bool
    timeout_ns: int
    writeback_ns: int
    name: bytes
    isolated: bool

    @property
    def spill_directory(self) -> bytes:
        """Where private changes go when they have to leave memory."""
        if self.mode != MODES["c"]:
            return b""
        import tempfile  # slow to import, and hardly ever needed

        try:
            return os.fsencode(tempfile.gettempdir())
        except FileNotFoundError as error:
            error.add_note(
                "mode 'c' keeps private changes in an unnamed file when they leave memory: set "
                "TMPDIR to a directory that takes one"
            )
            raise


def check_store(store: object, mode: str = "r") -> None:
    """Raise unless it is a store that can be paged in a mode, saying what to do instead."""
    if isinstance(store, Store):
        if mode == "r+" and not store.writable:
            raise ValueError(
                f"mode 'r+' writes to the store, and {store!r} is read-only: open it with "
                "writable=True, or use mode 'c', which keeps changes private"
            )
        if whole_number(store.nbytes, f"nbytes of {type(store).__name__}") < 0:
            raise ValueError(
                f"nbytes of {type(store).__name__} is {store.nbytes}: less than nothing"
            )
        return
    if isinstance(store, str | os.PathLike):
        raise TypeError(
            f"a store is needed, not a path: FileStore({os.fspath(store)!r}), or "
            "pagemove.open_array"
        )
    if isinstance(store, np.ndarray | OwnedMapping | Pager | memoryview | bytes | bytearray):
        raise TypeError(
            f"{type(store).__name__} is in memory already, so there is nothing to page in: use it "
            "as it is, or write it to a file (numpy.save) and page that with pagemove.open_array"
        )
    remedy = ""
    if hasattr(store, "read") or hasattr(store, "fileno"):
        remedy = ": pass the file's path, or the file to pagemove.memmap"
    elif hasattr(store, "__getitem__") and hasattr(store, "shape"):
        remedy = (
            ': open it by its path or URL and name ("x.h5#name", "x.zarr#name"), or page it with '
            "pagemove.stores.SlicedStore(function), whose function returns it"
        )
    raise TypeError(f"store must be a pagemove.stores.Store, not {type(store).__name__}{remedy}")


def check_keywords(function: str, paging: Mapping[str, object]) -> None:
    """Refuse keywords that no region has, in the name of the function that was called."""
    known = {*ModelessOptions.__annotations__, "mode"}
    for name in paging:
        if name in known:
            continue
        remedy = did_you_mean(name, known)
        if name == "order":
            remedy = "; pagemove.memmap has an order, and a .npy file says its own"
        elif name == "direct":
            remedy = "; pass storage_options={'direct': ...}, or a FileStore(path, direct=...)"
        raise TypeError(f"{function}() has no keyword {name!r}{remedy}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which of those that are known a name is like; empty if it is like none."""
    import difflib  # for this message alone

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def checked(
    nbytes: int,
    *,
    resident_limit: Limit | None,
    block_size: Size,
    mode: str,
    prefetch: str,
    store_timeout: float,
    name: str | None,
    writeback_interval: float | None = None,
    fork: str = "reopen",
    isolated: bool = False,
    called: Mapping[str, str] = MappingProxyType({}),
) -> Checked:
    """Check the arguments of a region over so many bytes; ValueError with the remedy.

    `called` has the names of those that the user knows by another one.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(
            f"mode must be 'r' (read-only), 'r+' (changes go to the store) or 'c' (changes stay "
            f"private), not {mode!r}"
        )
    if prefetch not in ("auto", "off"):
        raise ValueError(f"prefetch must be 'auto' or 'off', not {prefetch!r}")
    if fork not in ("reopen", "message"):
        raise ValueError(f"fork must be 'reopen' or 'message', not {fork!r}")
    if isinstance(store_timeout, bool) or not isinstance(store_timeout, numbers.Real):
        raise TypeError(f"store_timeout must be a number of seconds, not {store_timeout!r}")
    if not 0 <= store_timeout <= _MOST_SECONDS:
        raise ValueError(
            f"store_timeout must be a finite number of seconds, not negative, not {store_timeout}"
        )
    block = _block_size(block_size, nbytes, called.get("block_size", "block_size"))
    budget = resident_limit if isinstance(resident_limit, Budget) else None
    word = resident_limit.strip().lower() if isinstance(resident_limit, str) else ""
    chosen = resident_limit is not None and word != AUTO
    share = None
    if not chosen:
        share = automatic(nbytes, FEWEST_BLOCKS * block)
        budget = share.budget
        limit = budget.limit if budget else 0
    elif word == UNLIMITED:
        limit = 0
    else:
        size = limit_in(resident_limit)
        limit = _limit(size, block, called.get("resident_limit", "resident_limit"))
    return Checked(
        block_size=block,
        limit=limit,
        budget=budget,
        chosen=chosen,
        share=share,
        mode=MODES[mode],
        read_ahead=prefetch == "auto",
        timeout_ns=math.ceil(store_timeout * 1e9),
        writeback_ns=_interval(writeback_interval),
        name=checked_name(name),
        isolated=bool(isolated),
    )


def _interval(seconds: float | None) -> int:
    if seconds is None:
        return 0
    if isinstance(seconds, bool | np.bool_) or not isinstance(seconds, numbers.Real):
        raise TypeError(
            f"writeback_interval must be a number of seconds, or None for never, not {seconds!r}"
        )
    if not 0 <= seconds <= _MOST_SECONDS:
        raise ValueError(
            "writeback_interval must be a finite number of seconds, 0 or None for never, not "
            f"negative, not {seconds}"
        )
    return max(math.ceil(seconds * 1e9), _SHORTEST_INTERVAL) if seconds else 0


def _block_size(block_size: Size, nbytes: int, name: str) -> int:
    block = nbytes_of(block_size, name)
    if not PAGE_SIZE <= block <= LARGEST_BLOCK or block & (block - 1):
        raise ValueError(
            f"{name} must be a power of two from {PAGE_SIZE} (a page) to {LARGEST_BLOCK} "
            f"(2 MiB) bytes, not {block_size!r}"
        )
    if -(-nbytes // block) > _MOST_BLOCKS:
        enough = 1 << (-(-nbytes // _MOST_BLOCKS) - 1).bit_length()
        remedy = (
            f"use {name}='{text_of(enough)}' or larger"
            if enough <= LARGEST_BLOCK
            else "it is too large for the largest blocks too: page parts of it"
        )
        raise ValueError(
            f"{text_of(nbytes)} have more than {_MOST_BLOCKS} blocks of {text_of(block)}: {remedy}"
        )
    return block


def _limit(resident_limit: Size, block: int, name: str) -> int:
    limit = nbytes_of(resident_limit, name)
    if limit > _LARGEST_LIMIT:
        raise ValueError(
            f"{name} {resident_limit!r} is larger than any address space: it can be at most "
            f"{_LARGEST_LIMIT} bytes (8 EiB)"
        )
    least = FEWEST_BLOCKS * block
    if limit < least:
        smaller = 1 << max(limit // FEWEST_BLOCKS, 1).bit_length() - 1
        remedy = f"raise it to at least {text_of(least)}"
        if smaller >= PAGE_SIZE:
            remedy += f", or use blocks of at most {text_of(smaller)}"
        raise ValueError(
            f"{name} {resident_limit!r} is less than four blocks of {text_of(block)}: {remedy}"
        )
    return limit

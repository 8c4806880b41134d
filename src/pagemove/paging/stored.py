"""How a store is served: a file by the pager itself, any other store by a helper process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

from pagemove._native.pager import Host
from pagemove.descriptors import identity_of
from pagemove.paging.reading import goes_direct, writes_direct
from pagemove.stores.base import Store
from pagemove.stores.file import FileStore
from pagemove.stores.filelock import SHORT_OF, FileLock, opened_anew
from pagemove.stores.parts import whole_of

if TYPE_CHECKING:
    from pagemove._native.pager import _Taking

_LARGEST_REQUEST = 2 << 20
# Of a store that is pickled: what is kept in memory for children made by fork.
_LARGEST_PAYLOAD = 1 << 20


class Serving(TypedDict):
    """What the pager is told of a store: keywords of `Pager`, and the descriptor of a file."""

    fd: int
    offset: int
    label: bytes
    injection: list[tuple[int, int, int, int, int]]
    helper: tuple[list[bytes], int, int, int, int, int, int] | None
    identities: Sequence[tuple[int, int]]
    path: NotRequired[bytes]
    modified: NotRequired[int]
    compression: NotRequired[tuple[int, bytes | None]]
    direct: NotRequired[int]
    door: NotRequired[tuple[Host, int, bool] | None]
    taking: NotRequired[_Taking]


def is_native(store: Store) -> bool:
    """Whether the pager can read it without the interpreter.

    A subclass is not, whose overrides would not be called, unless it says so itself.
    """
    return isinstance(store, FileStore) and "_is_native" in vars(type(store))


def file_lock(store: Store) -> FileLock | None:
    """Take the lock of a file that the pager is going to write; BlockingIOError if it is taken.

    Any other store runs in a helper, and locks there what it writes.
    """
    store, _ = whole_of(store)
    return store.hand_over_lock() if isinstance(store, FileStore) and is_native(store) else None


def label_of(store: Store) -> str:
    """Name a store in messages."""
    store, _ = whole_of(store)
    return str(store.path) if isinstance(store, FileStore) else repr(store)


def _in_file(store: Store) -> tuple[int, int] | None:
    """Where the bytes of a store are in a local file: its descriptor, and the first of them."""
    if type(store).__module__ != "pagemove.stores.fsspec":
        return None
    from pagemove.stores.fsspec import FsspecStore  # there already, and asyncio with it

    return store.in_file() if type(store) is FsspecStore else None


def _taking(store: Store) -> _Taking | None:
    """Say what the pager needs of an array that is handed over, where it can take it itself."""
    if type(store).__module__ != "pagemove.stores.handed":
        return None
    from pagemove.stores.handed import HandedStore  # there already, and sockets with it

    return store.taking() if type(store) is HandedStore else None


@contextlib.contextmanager
def serving(
    store: Store, block_size: int, limit: int, *, writes: bool = False, isolated: bool = False
) -> Iterator[tuple[Serving, bytes]]:
    """Return what the pager needs to open a region over the store.

    Parameters
    ----------
    store : Store
        Pickled, if a helper is to run it.
    block_size, limit : int
        Bytes; no limit is 0.
    writes : bool
        Whether the region writes.
    isolated : bool
        Whether no other store may run in the helper that runs it.

    Yields
    ------
    tuple
        That, and what a helper process gets, to start one in a child made by fork.

    Raises
    ------
    TypeError
        The store cannot be pickled.
    """
    label = os.fsencode(label_of(store))
    whole, first = whole_of(store)
    if isinstance(whole, FileStore) and is_native(whole):
        # Of a FaultyStore.
        injection = [fault.injection for fault in getattr(whole, "faults", ())]
        with _file_of(whole, writes=writes) as fd:
            known = (identity_of(fd),)
            served = Serving(
                fd=fd, offset=first, label=label, injection=injection, helper=None, identities=known
            )
            served["path"], served["modified"] = whole._known
            served["direct"] = goes_direct(store) | (writes and writes_direct(store, limit)) << 1
            yield served, b""
        return
    place = _in_file(whole)
    if place is not None:
        fd, offset = place[0], place[1] + first
        known = (identity_of(fd),)
        served = Serving(
            fd=fd, offset=offset, label=label, injection=[], helper=None, identities=known
        )
        yield served, b""
        return
    taking = _taking(whole) if whole is store else None
    if taking is not None:
        served = Serving(fd=-1, offset=0, label=label, injection=[], helper=None, identities=())
        served["taking"] = taking
        yield served, b""
        return
    from pagemove.paging.handover import Helper  # and multiprocessing, which files do not need

    count, nbytes = lines(block_size, limit, store.concurrency)
    with contextlib.closing(Helper(store, isolated=isolated)) as helper:
        retryable = int(store.flush_retryable)
        numbers = helper.config, helper.log, count, nbytes, int(store.restartable), retryable
        process = (helper.argv, *numbers)
        served = Serving(
            fd=-1,
            offset=0,
            label=label,
            injection=[],
            helper=process,
            identities=helper.identities,
            door=helper.shared,
        )
        is_kept = store.restartable and len(helper.payload) <= _LARGEST_PAYLOAD
        yield served, helper.payload if is_kept else b""


@contextlib.contextmanager
def _file_of(store: FileStore, *, writes: bool) -> Iterator[int]:
    """Return a descriptor of the file. Of an open file of its own, for a region that writes.

    The kernel says once an open file that writing back has failed: if another region or the store
    heard of that, this one would take its own bytes for durable.
    """
    file = None
    if writes:
        try:
            file = opened_anew(store.fileno(), store.path)
            os.set_blocking(file.fd, True)
        except OSError as error:
            # After the program has given up the right to, say, it has to be the store's.
            if error.errno in SHORT_OF:
                raise
    try:
        yield store.fileno() if file is None else file.fd
    finally:
        if file is not None:
            file.close()


def lines(block_size: int, limit: int, concurrency: int) -> tuple[int, int]:
    """Choose how many requests can be under way, and how many bytes each: (count, nbytes).

    What they hold is the helper's memory, not the region's: at most a quarter of the limit.
    """
    if not limit:
        return concurrency, _LARGEST_REQUEST
    room = limit // 4
    nbytes = room // concurrency // block_size * block_size
    nbytes = min(max(nbytes, block_size), _LARGEST_REQUEST)
    return max(1, min(concurrency, room // nbytes)), nbytes

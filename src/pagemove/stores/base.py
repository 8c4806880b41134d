"""The interface of a store: bytes that are read, and perhaps written, at any offset."""

from __future__ import annotations

import abc
import errno
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pagemove.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from typing_extensions import Buffer

    from pagemove.stores.links import Link


class Store(abc.ABC):
    """Bytes, of a fixed number, readable and perhaps writable at any offset.

    A store of your own needs `nbytes` and `read_into`; one that can be written also `writable`,
    `write` and `flush`; one that holds something open also `close`. Whatever goes wrong is an
    exception, best a `pagemove.StoreError`: a store never fills a buffer in part, and never with
    anything else than what is stored there. `read_into` and `write` return nothing, or how many
    bytes they have transferred, as `readinto` and `write` of files do: less than all is an error.

    When a call has returned or raised it is over: nothing that it began may still reach the store,
    or the buffer. (One that a time limit of its own ends has to see to that.) Calls are not ended
    from outside. One that takes longer than ``store_timeout`` counts as failed; until it has
    returned all the same, or its process has ended, no other `write` or `read_into` of bytes that
    it writes begins, and after a late `flush` no other `flush`. A late `read_into` may still run
    when its bytes are written.

    To be paged it has to pickle. A store that is not a `FileStore` runs in a process of its own,
    made from the pickle, whose threads call `read_into` and `write` at once, up to `concurrency` of
    them. Each call is for one block of the region, or for several that follow each other, up to
    2 MiB. What raises, whatever it is, is tried again, up to the region's
    ``store_timeout``.

    Attributes
    ----------
    concurrency : int
        How many threads may call the store at a time. 1: they call one after another, so that
        nothing in the store needs a lock. Of the class or of the object.
    restartable : bool
        Whether another process, made from the same pickle, finds all that was written. False for a
        store that keeps what is written in its own process: should that process die, what was in it
        is gone, and reading it is an error, never zeros or what was there before.
    flush_retryable : bool
        Whether a `flush` that raises has lost nothing of what `write` accepted, so that a later one
        that returns covers all of it, whatever the earlier one said. True for what a server has
        accepted and keeps; False for anything that ends in fsync(2), which after a failure may have
        dropped what it could not write, and succeeds the next time. See `flush`.

    Examples
    --------
    >>> import pagemove
    >>> class Squares(pagemove.stores.Store):
    ...     nbytes = 8 * 1000
    ...
    ...     def read_into(self, offset, buffer):
    ...         first, last = offset // 8, (offset + len(buffer) + 7) // 8
    ...         words = b"".join((n * n).to_bytes(8, "little") for n in range(first, last))
    ...         buffer[:] = words[offset - 8 * first :][: len(buffer)]
    >>> with Squares() as store:
    ...     word = bytearray(8)
    ...     store.read_into(8 * 7, word)
    ...     int.from_bytes(word, "little"), store.writable
    (49, False)
    """

    concurrency: int = 16
    restartable: bool = True
    flush_retryable: bool = False

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Length in bytes. It does not change."""

    @property
    def writable(self) -> bool:
        """Whether `write` may be called. False unless a store says otherwise."""
        return False

    # `Any` rather than `Buffer`, so that a store of one's own may say memoryview, which is what a
    # region passes: an override must not accept less than its base does.
    @abc.abstractmethod
    def read_into(self, offset: int, buffer: Any) -> None:
        """Fill a buffer with the bytes from `offset` on: whole, or raise.

        Parameters
        ----------
        offset : int
            First byte in the store.
        buffer : writable buffer
            Contiguous bytes; ``offset + len(buffer)`` is at most `nbytes`.

        Raises
        ------
        StoreError
            They cannot be read. What the buffer contains then is of no importance.

        Examples
        --------
        >>> import pagemove
        >>> class Kept(pagemove.stores.Store):
        ...     nbytes, writable, kept = 10, True, bytearray(b"0123456789")
        ...
        ...     def read_into(self, offset, buffer):
        ...         buffer[:] = self.kept[offset : offset + len(buffer)]
        >>> some = bytearray(3)
        >>> Kept().read_into(4, some)
        >>> some
        bytearray(b'456')
        """

    def write(self, offset: int, data: Any) -> None:
        """Store bytes from `offset` on: all of them, or raise.

        Another `read_into` sees them from then on. They need not be durable before `flush`.

        Parameters
        ----------
        offset : int
            First byte in the store.
        data : buffer
            Contiguous bytes; ``offset + len(data)`` is at most `nbytes`.

        Raises
        ------
        StoreError
            They cannot be stored, or the store is not `writable`. Some may be stored, others not.

        Examples
        --------
        >>> import pagemove
        >>> class Kept(pagemove.stores.Store):
        ...     nbytes, writable, kept = 10, True, bytearray(b"0123456789")
        ...
        ...     def read_into(self, offset, buffer):
        ...         buffer[:] = self.kept[offset : offset + len(buffer)]
        ...
        ...     def write(self, offset, data):
        ...         self.kept[offset : offset + len(data)] = data
        >>> store = Kept()
        >>> store.write(4, b"xy")
        >>> bytes(store.kept)
        b'0123xy6789'
        """
        raise read_only(repr(self), offset)

    # Not abstract: most stores that are only read have nothing to flush or to close.
    def flush(self) -> None:  # noqa: B027
        """Make all that was written before durable, and return when it is.

        If it raises, nothing that was written since the last `flush` that returned is known to be
        durable. A region then writes all of it again that is in memory
        still, and flushes again, for as long as its ``store_timeout``. If a part of it has left
        memory, only the store could have it: this `flush` of the region and every later one raise.
        Where the store is `flush_retryable` nothing is written again, and nothing is lost: the
        region just asks again.

        One that takes longer than ``store_timeout`` fails the region's `flush`, but has lost
        nothing so far. The region's next `flush` waits for it, and does the above if it raises.

        Raises
        ------
        StoreError
            It cannot be made durable.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.stores.CompressedStore(1 << 20) as store:
        ...     store.write(0, b"changed")
        ...     store.flush()  # nothing to do: what is in memory cannot be more durable
        """

    def close(self) -> None:  # noqa: B027
        """Release what the store holds. Twice is fine. It does not flush.

        Examples
        --------
        >>> import pagemove
        >>> store = pagemove.stores.CompressedStore(1 << 20)
        >>> store.close()
        >>> store.close()
        """

    def stats(self) -> dict[str, float]:
        """Return what the store knows of itself, in numbers by name; nothing, as a rule.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.stores.CallableStore(lambda offset, length: bytes(length), 100) as store:
        ...     store.stats()
        {}
        """
        return {}

    def _items(self) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
        """Say what array the bytes are, where the store knows: shape and dtype, in C order."""
        return None

    def _get_ready(self) -> None:  # noqa: B027
        """Do what would make a first request late, in the process that is to serve it."""

    def _link(self, *, written: bool = False) -> Link | None:
        """Say how to open it anew elsewhere; None: by its pickle. `written`: by a region."""
        return None

    @classmethod
    def _from_link(
        cls, link: Link, writable: bool, lock: bool, options: Mapping[str, Any]
    ) -> Store:
        """Open what `_link` has returned, with more options."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_whole(store: Store, offset: int, buffer: Buffer) -> None:
    """Have a store fill a buffer; raise if it says that it has not filled all of it."""
    read: Callable[..., object] = store.read_into
    check_count(store, "read", offset, memoryview(buffer).nbytes, read(offset, buffer))


def write_whole(store: Store, offset: int, data: Buffer) -> None:
    """Have a store write; raise if it says that it has not written all."""
    write: Callable[..., object] = store.write
    check_count(store, "write", offset, memoryview(data).nbytes, write(offset, data))


def check_count(store: Store, operation: str, offset: int, length: int, result: object) -> None:
    """Raise if what `read_into` or `write` has returned says that it did not do all of it."""
    if result is None:
        return
    try:
        count = operator.index(result)  # type: ignore[arg-type]
    except TypeError:
        return
    if count == length or isinstance(result, bool):
        return
    done = {"read": ("fill", "read"), "write": ("store", "wrote")}[operation]
    raise StoreError(
        errno.EIO,
        f"cannot {operation} {store!r} at byte {offset}: it {done[1]} {count} bytes of {length}; "
        f"it must {done[0]} all of them, or raise",
        store=repr(store),
        operation=operation,
        offset=offset,
    )


def read_only(store: str, offset: int) -> StoreError:
    """Make the exception of a write into a store that is only read."""
    return StoreError(
        errno.EROFS,
        f"cannot write {store} at byte {offset}: the store is read-only; open it with "
        "writable=True, if it is of a kind that can be written",
        store=store,
        operation="write",
        offset=offset,
    )

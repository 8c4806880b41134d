"""A function as a store: data that is computed when it is touched."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagemove.errors import StoreError
from pagemove.stores import ranges
from pagemove.stores.base import Store, check_count, read_only

if TYPE_CHECKING:
    from typing_extensions import Buffer


class CallableStore(Store):
    """Bytes that a function returns.

    Parameters
    ----------
    read : callable
        ``read(offset, length)`` returns a bytes-like object of exactly `length` bytes. It has to
        pickle: a function at the top level of a module, a `functools.partial` of one, or an object
        with ``__call__``. The same bytes for the same range every time, or what is read again after
        it was evicted is something else.
    nbytes : int
        Length of the store.
    write : callable, optional
        ``write(offset, data)`` stores all of `data`, and returns when it is as durable as it is
        going to be: a flush does nothing more.
    concurrency : int
        How many threads may call the functions at a time; 1 if they are not made for several.

    Raises
    ------
    TypeError
        `read` or `write` cannot be called.
    ValueError
        `nbytes` or `concurrency` is not positive.

    Notes
    -----
    Durability, sharing and atomicity are those of the functions. They run in a process of their
    own: what they change there is not seen in this one.

    Examples
    --------
    >>> import numpy as np, pagemove
    >>> def squares(offset, length):
    ...     first, last = offset // 8, -(-(offset + length) // 8)
    ...     return (np.arange(first, last) ** 2).tobytes()[offset - 8 * first :][:length]
    >>> with pagemove.stores.CallableStore(squares, 8 * 10**9) as store:
    ...     number = np.zeros(1, int)
    ...     store.read_into(8 * 123456789, number)
    >>> int(number[0])
    15241578750190521
    """

    def __init__(
        self,
        read: Callable[[int, int], Buffer],
        nbytes: int,
        write: Callable[[int, memoryview], object] | None = None,
        *,
        concurrency: int = 16,
    ) -> None:
        for name, function in (("read", read), ("write", write or read)):
            if not callable(function):
                raise TypeError(f"{name} must be a function, not {type(function).__name__}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self._read = read
        self._write = write
        self._nbytes = ranges.checked_length(nbytes)
        self.concurrency = concurrency

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._nbytes

    @property
    def writable(self) -> bool:
        """Whether there is a function to write with."""
        return self._write is not None

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer with what the function returns.

        Parameters
        ----------
        offset : int
            First byte.
        buffer : writable buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The function gave more or fewer bytes than it was asked for.
        ValueError
            The range is not within the store.

        Examples
        --------
        >>> import pagemove
        >>> kept = bytearray(b"0123456789")
        >>> def read(offset, length):
        ...     return kept[offset : offset + length]
        >>> def write(offset, data):
        ...     kept[offset : offset + len(data)] = data
        >>> with pagemove.stores.CallableStore(read, 10) as store:
        ...     some = bytearray(3)
        ...     store.read_into(4, some)
        >>> some
        bytearray(b'456')
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        if not view.nbytes:
            return
        given = memoryview(self._read(start, view.nbytes)).cast("B")
        if given.nbytes != view.nbytes:
            raise StoreError(
                errno.EIO,
                f"cannot read {self!r} at byte {start}: asked for {view.nbytes} bytes, the "
                f"function returned {given.nbytes}; it must return as many as requested",
                store=repr(self),
                operation="read",
                offset=start,
            )
        view[:] = given

    def write(self, offset: int, data: Buffer) -> None:
        """Have the function store bytes.

        Parameters
        ----------
        offset : int
            First byte.
        data : buffer
            C-contiguous.

        Raises
        ------
        StoreError
            There is no function to write with.
        ValueError
            The range is not within the store.

        Examples
        --------
        >>> import pagemove
        >>> kept = bytearray(b"0123456789")
        >>> def read(offset, length):
        ...     return kept[offset : offset + length]
        >>> def write(offset, data):
        ...     kept[offset : offset + len(data)] = data
        >>> with pagemove.stores.CallableStore(read, 10, write) as store:
        ...     store.write(4, b"xy")
        >>> bytes(kept)
        b'0123xy6789'
        """
        view = memoryview(data).cast("B").toreadonly()
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        if self._write is None:
            raise read_only(repr(self), start)
        if view.nbytes:
            check_count(self, "write", start, view.nbytes, self._write(start, view))

    def __repr__(self) -> str:
        name = getattr(self._read, "__qualname__", None) or repr(self._read)
        return f"CallableStore({name}, {self._nbytes})"

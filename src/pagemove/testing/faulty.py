"""A file that fails on a schedule: how a program behaves when a disk does not.

A region over such a store behaves as if the file failed: the faults are injected below it, in the
code that reads and writes blocks.
"""

from __future__ import annotations

import math
import operator
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagemove.stores.file import FileStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

_OPERATIONS = ("read", "write", "flush")
# Kinds of faults, as the pager numbers them.
_ERRNO, _SHORT, _DELAY = range(3)

_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with some calls of one operation: exactly one of the last three.

    Attributes
    ----------
    operation : str
        ``"read"``, ``"write"`` or ``"flush"``.
    first, count : int
        Which calls of that operation: from call number `first` on, counted from 0, so many; 0 means
        all that follow.
    errno : int, optional
        Fails with this code.
    short : int, optional
        Reads or writes so many bytes less than it should. Not for a flush.
    delay : float, optional
        Takes so many seconds more, and then succeeds.

    Raises
    ------
    ValueError
        No such operation; not exactly one of `errno`, `short` and `delay`; one of the numbers is
        out of range.

    Examples
    --------
    >>> import errno
    >>> from pagemove.testing import Fault
    >>> Fault("read", first=3, errno=errno.EIO)
    Fault(operation='read', first=3, count=1, errno=5, short=None, delay=None)
    """

    operation: str
    first: int = 0
    count: int = 1
    errno: int | None = None
    short: int | None = None
    delay: float | None = None

    def __post_init__(self) -> None:
        if self.operation not in _OPERATIONS:
            raise ValueError(
                f"operation must be one of {', '.join(_OPERATIONS)}, not {self.operation!r}"
            )
        for name in ("first", "count"):
            if not 0 <= operator.index(getattr(self, name)) <= _LARGEST:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        given = [name for name in ("errno", "short", "delay") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a fault is one of errno, short and delay, not {' and '.join(given) or 'none'}"
            )
        if self.errno is not None and not 0 < operator.index(self.errno) < 4096:
            raise ValueError(f"errno must be one of the codes of errno(3), not {self.errno}")
        if self.short is not None:
            if self.operation == "flush":
                raise ValueError("a flush cannot be short: pass errno or delay")
            if not 0 < operator.index(self.short) <= _LARGEST:
                raise ValueError(f"short must be positive, not {self.short}")
        if self.delay is not None and not 0 < self.delay <= _LARGEST / 1e9:
            raise ValueError(f"delay must be a positive number of seconds, not {self.delay}")

    def hits(self, operation: str, call: int) -> bool:
        """Return whether it happens to a call.

        Parameters
        ----------
        operation : str
            ``"read"``, ``"write"`` or ``"flush"``.
        call : int
            Which call of that operation, counted from 0.

        Returns
        -------
        bool
            True for the calls from `first` on that `count` says.

        Examples
        --------
        >>> from pagemove.testing import Fault
        >>> fault = Fault("read", first=1, count=2, delay=0.1)
        >>> [fault.hits("read", call) for call in range(4)]
        [False, True, True, False]
        """
        past = call - self.first
        return operation == self.operation and past >= 0 and (not self.count or past < self.count)

    def __dir__(self) -> list[str]:
        # For completion: what is for the pager is left out. A class with slots is made twice, so
        # super() would be the wrong one.
        return sorted(set(object.__dir__(self)) - {"injection"})

    @property
    def injection(self) -> tuple[int, int, int, int, int]:
        """The same as the pager takes it."""
        if self.errno is not None:
            kind, value = _ERRNO, self.errno
        elif self.short is not None:
            kind, value = _SHORT, self.short
        else:
            kind, value = _DELAY, math.ceil((self.delay or 0) * 1e9)
        return (_OPERATIONS.index(self.operation), self.first, self.count, kind, value)


class FaultyStore(FileStore):
    """A `FileStore` that fails on a schedule.

    Parameters
    ----------
    path, writable, lock
        As for `FileStore`.
    faults : sequence of Fault
        Several may hit the same call: delays add up, and an errno takes precedence over a short
        call.

    Notes
    -----
    Calls of `read_into`, `write` and `flush` of this object are counted by this object. Each
    region over it counts the calls that it makes itself, from 0.

    Examples
    --------
    >>> import errno, pathlib, tempfile
    >>> from pagemove.testing import Fault, FaultyStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "file")
    ...     _ = path.write_bytes(b"0123456789")
    ...     with FaultyStore(path, faults=[Fault("read", errno=errno.EIO)]) as store:
    ...         store.read_into(0, bytearray(4))
    Traceback (most recent call last):
        ...
    pagemove.errors.StoreError: [Errno 5] cannot read ...: EIO (Input/output error); ...
    """

    _is_native = True  # the pager has the same schedule

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        lock: bool = True,
        faults: Sequence[Fault] = (),
    ) -> None:
        self._fd = -1  # so that it can be finalised should a fault be none
        self._faults = tuple(faults)
        for fault in self._faults:
            if not isinstance(fault, Fault):
                raise TypeError(f"faults must be Fault objects, not {type(fault).__name__}")
        self._calls = dict.fromkeys(_OPERATIONS, 0)
        super().__init__(path, writable=writable, lock=lock)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The schedule."""
        return self._faults

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer as `FileStore.read_into` does, or fail as the schedule says.

        Parameters
        ----------
        offset : int
            First byte in the file.
        buffer : writable buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The file failed, or the schedule says so.

        Examples
        --------
        >>> import errno, pathlib, tempfile
        >>> from pagemove.testing import Fault, FaultyStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file")
        ...     _ = path.write_bytes(b"0123456789")
        ...     with FaultyStore(path, faults=[Fault("read", short=2)]) as store:
        ...         store.read_into(0, bytearray(4))
        Traceback (most recent call last):
            ...
        pagemove.errors.StoreError: [Errno 5] cannot read ...
        """
        view = memoryview(buffer).cast("B")
        short = self._suffer("read", offset)
        super().read_into(offset, view[: max(view.nbytes - short, 0)])
        if short:
            raise self._failure(0, "read", offset)

    def write(self, offset: int, data: Buffer) -> None:
        """Write as `FileStore.write` does, or fail as the schedule says.

        Parameters
        ----------
        offset : int
            First byte in the file.
        data : buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The file failed, or the schedule says so.

        Examples
        --------
        >>> import errno, pathlib, tempfile
        >>> from pagemove.testing import Fault, FaultyStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file")
        ...     _ = path.write_bytes(b"0123456789")
        ...     full = Fault("write", errno=errno.ENOSPC)
        ...     with FaultyStore(path, writable=True, faults=[full]) as store:
        ...         store.write(0, b"abcd")
        Traceback (most recent call last):
            ...
        pagemove.errors.StoreError: [Errno 28] cannot write ...
        """
        view = memoryview(data).cast("B")
        short = self._suffer("write", offset)
        super().write(offset, view[: max(view.nbytes - short, 0)])
        if short:
            raise self._failure(0, "write", offset)

    def _sync(self) -> None:
        self._suffer("flush", None)
        super()._sync()

    def _suffer(self, operation: str, offset: int | None) -> int:
        """Count a call and let happen to it what is due; return the bytes to leave out."""
        call = self._calls[operation]
        self._calls[operation] += 1
        due = [fault for fault in self._faults if fault.hits(operation, call)]
        for fault in due:
            if fault.delay is not None:
                time.sleep(fault.delay)
        codes = [fault.errno for fault in due if fault.errno is not None]
        if codes:
            raise self._failure(codes[-1], operation, offset)
        return next((fault.short for fault in reversed(due) if fault.short is not None), 0)

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        return options | {"faults": self._faults} if self._faults else options

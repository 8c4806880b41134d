"""A file, or a block device, as a store."""

from __future__ import annotations

import errno
import operator
import os
import stat
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pagemove import limits
from pagemove.descriptors import identity_of
from pagemove.errors import StoreError, store_error
from pagemove.stores.base import Store, read_only
from pagemove.stores.descriptors import open_high, shown, tell_in_child
from pagemove.stores.filelock import SHORT_OF, FileLock, opened_anew
from pagemove.stores.lengths import length_of
from pagemove.stores.links import Link
from pagemove.stores.unsynced import Unsynced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

Direct: TypeAlias = bool | Literal["auto"]


class FileStore(Store):
    """A regular file or a block device, served without the interpreter.

    Several stores may have the same file open. Their length is that of the file when it was opened:
    what is appended later is not seen, and reading what was cut off since is an error.

    Parameters
    ----------
    path : str or path-like
        The file. A relative one is taken from the directory that is current now.
    writable : bool
        Open it for writing too. It has to be there, and keeps its length.
    lock : bool
        Refuse to write while another store or region writes, of this process or of another. False:
        for writers that know of each other, and never write into the same block of a region.
    direct : bool or "auto"
        Whether a region over it reads past the page cache (O_DIRECT), so that a block does not lie
        in memory twice; what was evicted is then read from the device again. ``"auto"``: where the
        file is larger than the memory that is available. Where it cannot be, the region reads as
        without, and `PagingStats.io` says why. Writes go through the page cache, and the kernel
        keeps the two alike.

    Raises
    ------
    OSError
        As open(2): `FileNotFoundError`, `PermissionError`, `IsADirectoryError` ...
    ValueError
        It is empty, or cannot be read at any offset: a pipe, a character device, a file of procfs.

    Notes
    -----
    **Sharing.** Any number of readers, and one writer. The file is locked (F_OFD_SETLK, the whole
    of it) from the first `write` on until `close`, or until the store is pickled; and by a region
    of mode ``"r+"`` over it until that is closed. Another writer is refused, by a message that
    names who has the lock. Programs that do not ask for locks are not held up by one. Where the
    file system has no locks, a RuntimeWarning says so.

    **Durability.** After a `flush` that failed it is unknown what has arrived. So `flush` fails
    until all is written again that was written since the last that succeeded.

    In a forked child it can be read as before, and written unless the parent has the lock; what a
    `flush` of the parent may have lost before has to be written again there too. It pickles as its
    path, and is opened anew from it. Not to be closed while another thread reads or writes it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "file")
    ...     _ = path.write_bytes(b"0123456789")
    ...     with pagemove.stores.FileStore(path, writable=True) as store:
    ...         store.write(4, b"xy")
    ...         store.flush()
    ...         digits = bytearray(6)
    ...         store.read_into(2, digits)
    >>> digits
    bytearray(b'23xy67')
    """

    _direct: Direct = False
    _is_new = False  # made to be written, all of it
    _is_native = True  # in `vars` of a class that the pager reads and writes by itself

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        lock: bool = True,
        direct: Direct = False,
    ) -> None:
        self._fd = -1
        if direct not in (True, False, "auto"):
            raise ValueError(f"direct must be True, False or 'auto', not {direct!r}")
        self._direct: Direct = direct if direct == "auto" else bool(direct)
        # Not resolved: `..` after a symbolic link means what it means to open(2).
        self._path = Path(path).absolute()
        self._writable, self._locks = bool(writable), bool(lock)
        self._held: FileLock | None = None
        self._holding = threading.Lock()
        self._unsynced = Unsynced()
        # O_NONBLOCK: else opening a pipe waits for a writer.
        access = os.O_RDWR if writable else os.O_RDONLY
        with limits.named():
            fd = open_high(self._path, access | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            os.set_blocking(fd, True)
            self._identity = identity_of(fd)
            self._modified = os.fstat(fd).st_mtime_ns
            self._nbytes = length_of(fd, self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._inherited = fd, False
        tell_in_child(self)

    def _in_child(self) -> None:
        # The lock is the parent's; and a thread that is not here may have been about to take it.
        self._held, self._holding = None, threading.Lock()
        self._unsynced, self._inherited = self._unsynced.in_child(), True

    @property
    def path(self) -> Path:
        """Absolute path of the file."""
        return self._path

    def _call(self, path: str) -> None:
        """Name it as it is going to be, for it is about to be renamed."""
        self._path = Path(path).absolute()

    @property
    def nbytes(self) -> int:
        """Length in bytes, as it was when the file was opened."""
        return self._nbytes

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing too."""
        return self._writable

    @property
    def direct(self) -> Direct:
        """Whether a region over it is to read past the page cache."""
        return self._direct

    def __dir__(self) -> list[str]:
        # For completion: what only paging asks of a file is left out.
        return sorted(set(super().__dir__()) - {"hand_over_lock"})

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return the descriptor, which stays the store's.

        Raises
        ------
        ValueError
            The store is closed.
        StoreError
            The program has closed the descriptor: its number may be another file's by now.

        Examples
        --------
        >>> import os, pathlib, tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file")
        ...     _ = path.write_bytes(b"0123456789")
        ...     with pagemove.stores.FileStore(path) as store:
        ...         os.fstat(store.fileno()).st_size
        10
        """
        if self._fd < 0:
            raise ValueError(f"{self!r}: it cannot be used any more")
        if identity_of(self._fd) != self._identity:
            raise store_error(
                errno.EBADF,
                store=str(self._path),
                operation="read",
                remedy="the program has closed its descriptor; open the store again",
            )
        return self._fd

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer with the bytes from `offset` on.

        Parameters
        ----------
        offset : int
            First byte in the file.
        buffer : writable buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The file cannot be read, or has become shorter since it was opened.
        ValueError
            `offset` and the buffer's length are not within `nbytes`; the store is closed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file")
        ...     _ = path.write_bytes(b"0123456789")
        ...     with pagemove.stores.FileStore(path) as store:
        ...         some = bytearray(3)
        ...         store.read_into(4, some)
        >>> some
        bytearray(b'456')
        """
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise BufferError("the buffer is read-only: nothing can be read into it")
        place = self._place(offset, view.nbytes)
        try:
            while view:
                got = os.preadv(self.fileno(), [view], place)
                if not got:
                    raise self._failure(0, "read", place)
                view, place = view[got:], place + got
        except OSError as error:
            raise self._translated(error, "read", place) from None

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes from `offset` on into the file, which keeps its length.

        Parameters
        ----------
        offset : int
            First byte in the file.
        data : buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The file cannot be written, or was not opened for it, or another store or region writes.
        ValueError
            `offset` and the length of `data` are not within `nbytes`; the store is closed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file")
        ...     _ = path.write_bytes(b"0123456789")
        ...     with pagemove.stores.FileStore(path, writable=True) as store:
        ...         store.write(4, b"xy")
        ...     path.read_bytes()
        b'0123xy6789'
        """
        view = memoryview(data).cast("B")
        place = self._place(offset, view.nbytes)
        self.fileno()
        if not self._writable:
            raise read_only(str(self._path), place)
        self._own("write", place)
        self._hold(place)
        with self._unsynced.writing(place, place + view.nbytes):
            self._write(view, place)

    def _write(self, view: memoryview, place: int) -> None:
        try:
            while view:
                put = os.pwrite(self.fileno(), view, place)
                if not put:
                    raise self._failure(0, "write", place)
                view, place = view[put:], place + put
        except OSError as error:
            raise self._translated(error, "write", place) from None

    def flush(self) -> None:
        """Return when all that was written is durable: fdatasync(2).

        Raises
        ------
        StoreError
            It cannot be made durable; or what an earlier `flush` may have lost was not written
            again.
        ValueError
            The store is closed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file")
        ...     _ = path.write_bytes(b"0123456789")
        ...     with pagemove.stores.FileStore(path, writable=True) as store:
        ...         store.write(0, b"x")
        ...         store.flush()  # from here on a loss of power does not lose it
        """
        self.fileno()
        if not self._writable:
            return
        self._own("flush", None)
        try:
            lost = self._unsynced.sync(self._sync)
        except OSError as error:
            raise self._translated(error, "flush", None) from None
        if lost:
            raise store_error(
                errno.EIO,
                store=str(self._path),
                operation="flush",
                remedy=f"an earlier flush has failed, and bytes {lost[0]} to {lost[1]} that it was "
                "for have not been written again: write them, or read what has arrived from a "
                "store that is opened anew",
            )

    def _sync(self) -> None:
        os.fdatasync(self.fileno())

    def _own(self, operation: str, offset: int | None) -> None:
        """Have an open file of its own, also in a forked child.

        The kernel says once an open file that writing back has failed: if the child heard of that,
        the parent would take its bytes for durable, or the other way round.
        """
        if not self._inherited:
            return
        with self._holding:
            if not self._inherited:
                return
            try:
                file = opened_anew(self.fileno(), self._path)
            except OSError as error:
                if error.errno in SHORT_OF:
                    raise self._translated(error, operation, offset) from None
            else:
                os.set_blocking(file.fd, True)
                # Under the same number, which others may know.
                os.dup2(file.fd, self._fd, inheritable=False)
                file.close()
            self._inherited = False

    def hand_over_lock(self) -> FileLock | None:
        """Return the write lock to a caller that writes in its place; None if it has none.

        Raises
        ------
        BlockingIOError
            Another store or region has it.
        """
        with self._holding:
            held, self._held = self._held, None
            if held is None and self._writable and self._locks:
                held = FileLock(self.fileno(), self._path)
            return held

    def _give_up(self) -> None:
        with self._holding:
            if self._held is not None:
                self._held.close()
                self._held = None

    def _hold(self, offset: int) -> None:
        """Have the lock; StoreError if another has it."""
        if not self._locks or self._held is not None:
            return
        with self._holding:
            if self._held is None:
                try:
                    self._held = FileLock(self.fileno(), self._path)
                except BlockingIOError as error:
                    raise StoreError(
                        errno.EAGAIN,
                        f"cannot write {shown(self._path)} at byte {offset}: {error.strerror}",
                        store=str(self._path),
                        operation="write",
                        offset=offset,
                    ) from None
                except OSError as error:
                    raise self._translated(error, "write", offset) from None

    def close(self) -> None:
        """Close the descriptor. Twice is fine. Regions over the file stay as they are.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file")
        ...     _ = path.write_bytes(b"0123456789")
        ...     store = pagemove.stores.FileStore(path)
        ...     store.close()
        ...     store.closed
        True
        """
        self._give_up()
        fd, self._fd = self._fd, -1
        if fd >= 0 and identity_of(fd) == self._identity:
            os.close(fd)

    def _place(self, offset: int, length: int) -> int:
        start = operator.index(offset)
        if not 0 <= start <= self._nbytes - length:
            raise ValueError(
                f"bytes {start} to {start + length} are not within the {self._nbytes} of "
                f"{self._path}"
            )
        return start

    def _failure(self, code: int, operation: str, offset: int | None) -> StoreError:
        if code:
            remedy = "check the file system and the device (dmesg, df)"
        else:
            remedy = "the file was truncated after it was opened: open it again"
        return store_error(
            code, store=str(self._path), operation=operation, offset=offset, remedy=remedy
        )

    def _translated(self, error: OSError, operation: str, offset: int | None) -> StoreError:
        if isinstance(error, StoreError):
            return error
        return self._failure(error.errno or errno.EIO, operation, offset)

    def _options(self) -> dict[str, Any]:
        """Return the keywords that open such a store once more, but those with the usual value."""
        options: dict[str, Any] = {"writable": True} if self._writable else {}
        if not self._locks:
            options["lock"] = False
        return options | {"direct": self._direct} if self._direct else options

    @property
    def _known(self) -> tuple[bytes, int]:
        """Its path, and when it was modified last, in nanoseconds, when it was opened."""
        return os.fsencode(self._path), self._modified

    def _link(self, *, written: bool = False) -> Link | None:
        if type(self) is not FileStore:
            return None
        found = os.stat(self._path)
        is_device = stat.S_ISBLK(found.st_mode)
        same = (found.st_dev, found.st_ino) == self._identity
        if not same or (not is_device and not written and found.st_mtime_ns != self._modified):
            raise StoreError(
                errno.ESTALE,
                f"{self._path} is not what it was when it was opened: "
                + ("it was written to" if same else "another file has its name")
                + "; open it again",
                store=str(self._path),
                operation="read",
            )
        version = (self._nbytes,) if is_device else (found.st_size, found.st_mtime_ns)
        options = {"direct": self._direct} if self._direct else {}
        return Link(FileStore, str(self._path), options, version)

    @classmethod
    def _from_link(
        cls, link: Link, writable: bool, lock: bool, options: Mapping[str, Any]
    ) -> Store:
        return cls(link.place, writable=writable, lock=lock, **options)

    def __reduce__(self) -> tuple[object, ...]:
        # Handed over: where it is used next it is to be written.
        self._give_up()
        return (_reopened, (type(self), str(self._path), self._options()))

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self._options().items())
        text = f"{type(self).__name__}({str(self._path)!r}{options})"
        return f"<closed {text}>" if self.closed else text

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()


def _reopened(kind: type[FileStore], path: str, options: dict[str, Any]) -> FileStore:
    return kind(path, **options)

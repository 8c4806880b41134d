"""Whatever fsspec opens, as a store: object storage, HTTP, members of archives."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from typing import TYPE_CHECKING, Any, get_args

from pagemove.errors import StoreError
from pagemove.stores import chains, http, ranges
from pagemove.stores.base import Store
from pagemove.stores.causes import cause_of, errno_of
from pagemove.stores.descriptors import tell_in_child
from pagemove.stores.extras import needed
from pagemove.stores.files import Data, LocalRange
from pagemove.stores.http import Guard, Resource, Validate
from pagemove.stores.links import Link, portable_options
from pagemove.stores.logs import hide_in_logs
from pagemove.stores.loops import begin_in_a_thread, wait_for
from pagemove.stores.patience import RunningTime, patiently
from pagemove.stores.readers import Reader, Settings, reader_of
from pagemove.stores.urls import Secrets, check_userinfo, portable, without_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

# What will not be another way the next time.
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    ImportError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_IN_MEMORY = re.compile(r"(?:^|::)memory://")


class FsspecStore(Store):
    """A file that fsspec opens, read by ranges: ``s3://``, ``https://``, ``zip://x::...``.

    Parameters
    ----------
    url : str
        As fsspec takes it, chained ones too.
    timeout : float
        Seconds for one read, tries again with growing pauses included. Only filesystems that are
        asynchronous (object storage, HTTP) can be held to it.
    validate : {"etag", "size", "none"}
        What has to stay as it was when it was opened, over HTTP and on S3: ETag (or the time of
        modification) and length, the length, or neither. Not ``"etag"`` where servers behind one
        name return different ETags for the same bytes.
    **storage_options
        For the filesystem: credentials, an ``endpoint_url``, ``anon=True`` ...

    Raises
    ------
    ImportError
        fsspec, or what it needs for such a URL, is not installed: ``pip install
        'pagemove[fsspec]'``, for S3 ``'pagemove[s3]'``.
    FileNotFoundError, IsADirectoryError, PermissionError
        There is no file; the filesystem does not let it be read.
    ValueError
        It is empty, has no known length, or the server does not serve ranges of it.
    OSError
        The server cannot be reached, or has a failure, until `timeout`.

    Notes
    -----
    **Durability, atomicity.** It is only read. Objects cannot be changed in part: to change them
    put a `LayeredStore` over it, whose changes stay in a store of yours; or use mode ``"c"``.

    **Sharing.** Any number of readers. The file must not change meanwhile. Over HTTP and on S3 a
    change is noticed, as `validate` says, and is an error. Elsewhere it is not.

    **Answers.** The range, the length and the encoding of every answer over HTTP and from S3 are
    compared with what was asked for; anything else is an error. At most one byte more than that is
    read.

    **Wrappers.** A member that is stored as it is in a zip or tar archive, a file in ``dir::``, a
    reference and a copy in ``filecache::`` or ``simplecache::`` are read as a range of what they
    are in: one of a local file by the pager itself, without a helper process. Where nothing is
    known of a filesystem that is not asynchronous, one thread at a time reads from it.

    **Cost.** One request for each range, up to 16 at a time: choose large blocks, for a request
    takes tens of milliseconds whatever its length. Plain ``http://`` and ``https://`` URLs without
    options are read by obstore, and so is what s3fs has opened with no options but ``key``,
    ``secret``, ``token``, ``anon``, ``profile``, ``endpoint_url``, ``use_ssl``, ``client_kwargs``
    with a region; both extras install it. aiohttp and s3fs take several times as long, and read
    what is left. A member that is compressed in its archive is decompressed up to what is read:
    sequential reading is fine, any other order is not.
    ``blockcache::`` keeps its blocks for each process, unless `cache_storage` names a folder.

    It pickles as URL and options, credentials included, and opens the filesystem in the process
    that reads; a forked child opens it anew too. What is in ``memory://`` no other process sees:
    such a file is copied when the store is made, and the copy is pickled. Libraries log what they
    do; secrets of URL and options are left out of that while the store is there.

    Examples
    --------
    >>> import fsspec, pagemove
    >>> with fsspec.open("memory://greeting", "wb") as file:
    ...     _ = file.write(b"hello, world")
    >>> with pagemove.stores.FsspecStore("memory://greeting") as store:
    ...     word = bytearray(5)
    ...     store.read_into(7, word)
    ...     word, store.nbytes
    (bytearray(b'world'), 12)
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        validate: Validate = "etag",
        **storage_options: Any,
    ) -> None:
        needed("fsspec", "fsspec")
        if validate not in get_args(Validate):
            raise ValueError(f"validate must be one of {get_args(Validate)}, not {validate!r}")
        check_userinfo(url)
        self._url = url
        self._options = storage_options
        self._timeout = timeout
        self._validate: Validate = validate
        self._known: Resource | None = None
        self._copy: bytes | None = None
        self._begin()
        failure: BaseException | None = None
        try:
            reader = self._reader()
        except Exception as error:
            failure = self._refusal(error)
        if failure is not None:
            # Here, not above: what it would be chained to may have a secret in it.
            self._close_quietly()
            raise failure
        self._nbytes, self._known = reader.nbytes, reader.known
        if not self._nbytes:
            self._close_quietly()
            raise ValueError(f"{self.url} is empty: there is nothing to page")

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opened: Reader | None = None
        self._guard = Guard(self._validate)
        self._secrets = Secrets(self._url, self._options)
        hide_in_logs(self._secrets)
        tell_in_child(self)

    def _in_child(self) -> None:
        # Files have one position for both processes, and connections one stream. Kept, for to
        # finalise them would be to use them.
        opened = self._opened
        self._of_parent = opened, self._guard
        self._begin()
        if isinstance(opened, Data | LocalRange):
            self._opened = opened

    @property
    def url(self) -> str:
        """Where it is, without a password that may be in it."""
        return without_secret(self._url)

    @property
    def nbytes(self) -> int:
        """Length in bytes, as it was when it was opened."""
        return self._nbytes

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer with the bytes from `offset` on.

        Parameters
        ----------
        offset : int
            First byte.
        buffer : writable buffer
            C-contiguous.

        Raises
        ------
        StoreError
            It cannot be read, or not in time; it is shorter than it was, or has changed.
        ValueError
            The range is not within the file.

        Examples
        --------
        >>> import fsspec, pagemove
        >>> with fsspec.open("memory://digits", "wb") as file:
        ...     _ = file.write(b"0123456789")
        >>> with pagemove.stores.FsspecStore("memory://digits") as store:
        ...     some = bytearray(3)
        ...     store.read_into(4, some)
        >>> some
        bytearray(b'456')
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        if not view.nbytes:
            return
        failure: StoreError | None = None
        try:
            reader = self._reader()
            if reader.patient:
                patiently(lambda left: reader.read(start, view, left), self._timeout, _is_transient)
            else:
                reader.read(start, view, self._timeout)
        except Exception as error:
            failure = self._failure(error, start)
        if failure is not None:
            # Here, not above: what it would be chained to may have a secret in it.
            raise failure

    def write(self, offset: int, data: Buffer) -> None:
        """Refuse: what fsspec opens is only read.

        Parameters
        ----------
        offset : int
            First byte.
        data : buffer
            Of no importance.

        Raises
        ------
        StoreError
            Always.

        Examples
        --------
        >>> import fsspec, pagemove
        >>> with fsspec.open("memory://digits", "wb") as file:
        ...     _ = file.write(b"0123456789")
        >>> with pagemove.stores.FsspecStore("memory://digits") as store:
        ...     try:
        ...         store.write(0, b"x")
        ...     except pagemove.StoreError:
        ...         print("it is only read")
        it is only read
        """
        raise StoreError(
            errno.EROFS,
            f"cannot write {self!r} at byte {offset}: an object is replaced as a whole or not at "
            "all; put LayeredStore(top, ...) over it, or open the region with mode 'c'",
            store=repr(self),
            operation="write",
            offset=offset,
        )

    def close(self) -> None:
        """Close files and connections, which are opened again for the next read.

        Examples
        --------
        >>> import fsspec, pagemove
        >>> with fsspec.open("memory://digits", "wb") as file:
        ...     _ = file.write(b"0123456789")
        >>> store = pagemove.stores.FsspecStore("memory://digits")
        >>> store.close()
        """
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
        if self._guard.loop is not None:
            wait_for(self._guard, self._guard.close(), self._timeout)

    def _close_quietly(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def in_file(self) -> tuple[int, int] | None:
        """Say which file of this machine has it, as a range.

        Returns
        -------
        tuple of int or None
            A descriptor, which stays the store's, and the offset of the first byte.

        Raises
        ------
        StoreError
            It was closed, and cannot be opened again.

        Examples
        --------
        >>> import fsspec, pagemove
        >>> with fsspec.open("memory://digits", "wb") as file:
        ...     _ = file.write(b"0123456789")
        >>> with pagemove.stores.FsspecStore("memory://digits") as store:
        ...     store.in_file() is None  # it is in no file of this machine
        True
        """
        failure: StoreError | None = None
        try:
            reader = self._reader()
            return (reader.fileno(), reader.offset) if isinstance(reader, LocalRange) else None
        except Exception as error:
            failure = self._failure(error, 0)
        # Here, not above: what it would be chained to may have a secret in it.
        raise failure

    def _reader(self) -> Reader:
        """Return what reads it, which is opened if it is not."""
        if not self._lock.acquire(timeout=self._timeout):
            raise TimeoutError(errno.ETIMEDOUT, f"not opened within {self._timeout:.3g} s")
        try:
            if self._opened is None:
                with RunningTime() as clock:
                    self._opened = patiently(self._open, self._timeout, _is_transient, clock=clock)
            return self._opened
        finally:
            self._lock.release()

    def _open(self, _left: float) -> Reader:
        if self._copy is not None:
            return Data(self._copy)
        begin_in_a_thread()
        filesystem, path = chains.opened(self._url, self._options, self._guard)
        if _IN_MEMORY.search(self._url):
            with filesystem.open(path, "rb") as file:
                self._copy = bytes(file.read())
            return Data(self._copy)
        settings = Settings(self._timeout, self._validate, self._guard)
        reader = reader_of(filesystem, path, settings, self._known)
        if self._known is not None and reader.nbytes != self._nbytes:
            found = reader.nbytes
            reader.close()
            raise OSError(
                errno.ESTALE,
                f"it has changed since it was opened (it had {self._nbytes} bytes, and has "
                f"{found}); open it anew",
            )
        return reader

    def _text(self, error: BaseException) -> str:
        """Return what an error says, and what was noted of it, without what must not be shown."""
        return self._secrets.hide("; ".join([cause_of(error), *getattr(error, "__notes__", ())]))

    def _refusal(self, error: Exception) -> Exception:
        """Make the exception of one that cannot be opened."""
        text = f"cannot open {self.url}: {self._text(error)}"
        if isinstance(error, ImportError):
            return ImportError(f"{text}{self._remedy()}", name=error.name)
        for kind in (FileNotFoundError, IsADirectoryError, PermissionError, TimeoutError):
            if isinstance(error, kind):
                return kind(errno_of(error), text)
        if isinstance(error, ValueError | TypeError | NotImplementedError):
            return ValueError(text)
        return StoreError(errno_of(error), text, store=repr(self), operation="read")

    def _remedy(self) -> str:
        """Say how to install what fsspec lacks for such a URL."""
        extras = {"s3": "s3", "s3a": "s3", "http": "fsspec", "https": "fsspec"}
        known = (extras[each] for each in chains.protocols(self._url) if each in extras)
        extra = next(known, None)
        return f": pip install 'pagemove[{extra}]'" if extra else ""

    def _failure(self, error: Exception, offset: int) -> StoreError:
        return StoreError(
            errno_of(error),
            f"cannot read {self!r} at byte {offset}: {self._text(error)}",
            store=repr(self),
            operation="read",
            offset=offset,
        )

    def _link(self, *, written: bool = False) -> Link | None:
        if type(self) is not FsspecStore:
            return None
        if self._copy is not None:
            raise ValueError(
                f"{self!r} is in the memory of this process, where no other can read it: write it "
                "to a file, or pass copy=True"
            )
        options, names = portable_options(self._options)
        place, parts = portable(self._url)
        options |= {"timeout": self._timeout, "validate": self._validate}
        known = self._known.version if self._known and self._validate == "etag" else ""
        return Link(FsspecStore, place, options, (self._nbytes, known), (*parts, *names))

    @classmethod
    def _from_link(
        cls, link: Link, writable: bool, lock: bool, options: Mapping[str, Any]
    ) -> Store:
        return cls(link.place, **{**link.options, **options})

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_url", "_options", "_timeout", "_validate", "_known", "_copy", "_nbytes")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"FsspecStore({self.url!r})"


def _is_transient(error: Exception) -> bool:
    stale = isinstance(error, OSError) and error.errno == errno.ESTALE
    # Of libraries whose exceptions all derive from one.
    unknown = "Credentials" in type(error).__name__
    if stale or unknown or isinstance(error, _FINAL):
        return False
    return http.is_passing(error)

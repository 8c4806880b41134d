"""Whatever fsspec opens, as a store: object storage, HTTP, members of archives."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pagemove.errors import StoreError
from pagemove.stores import http, ranges, s3
from pagemove.stores.base import Store
from pagemove.stores.extras import needed
from pagemove.stores.loops import wait_for
from pagemove.stores.patience import patiently
from pagemove.stores.urls import without_secret

if TYPE_CHECKING:
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
_MOST_IDLE = 4


class FsspecStore(Store):
    """A file that fsspec opens, read by ranges: ``s3://``, ``https://``, ``zip://x::...``.

    Parameters
    ----------
    url : str
        As fsspec takes it, chained ones too.
    timeout : float
        Seconds for one read, tries again with growing pauses included. Only filesystems that are
        asynchronous (object storage, HTTP) can be held to it.
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
        It is empty, has no known length, or the server does not give ranges of it.
    OSError
        The server cannot be reached, or has a failure, until `timeout`.

    Notes
    -----
    **Durability, atomicity.** It is only read. Objects cannot be changed in part: to change them
    put a `LayeredStore` over it, whose changes stay in a store of yours; or use mode ``"c"``.

    **Sharing.** Any number of readers. The file must not change meanwhile. Over HTTP a change is
    noticed (by ETag, or the time of modification), and is an error. On S3 it is noticed where
    obstore reads; or name the version (``version_aware=True`` and ``?versionId=`` in the URL) where
    others may replace an object.

    **Cost.** One request for each range, up to 16 at a time: choose large blocks, for a request
    takes tens of milliseconds whatever its length. What s3fs has opened obstore reads, if it is
    installed (the extra does it) and the options are among ``key``, ``secret``, ``token``,
    ``anon``, ``profile``, ``endpoint_url``, ``use_ssl``, ``client_kwargs`` with a region: in much
    less time than s3fs, which reads otherwise. A member that is compressed in its archive is
    decompressed up to what is read: sequential reading is fine, any other order is not.

    It pickles as URL and options, credentials included, and opens the filesystem in the process
    that reads. What is in ``memory://`` no other process sees: such a file is copied when the store
    is made, and the copy is pickled.

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

    def __init__(self, url: str, *, timeout: float = 5.0, **storage_options: Any) -> None:
        needed("fsspec", "fsspec")
        self._url = url
        self._options = storage_options
        self._timeout = timeout
        self._version = ""
        self._copy: bytes | None = None
        self._begin()
        try:
            self._nbytes = self._look()
        except BaseException:
            self.close()
            raise
        if not self._nbytes:
            raise ValueError(f"{self.url} is empty: there is nothing to page")
        if _IN_MEMORY.search(url):
            self._copy = bytes(self._filesystem.cat_file(self._path))

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._s3: s3.Reader | None = None
        self._s3_tried = False
        self._idle: list[tuple[int, BinaryIO]] = []

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
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        if not view.nbytes:
            return
        try:
            if self._copy is not None:
                view[:] = memoryview(self._copy)[start : start + view.nbytes]
            elif self._filesystem.async_impl:
                patiently(lambda left: self._fetch(start, view, left), self._timeout, _is_transient)
            else:
                self._copy_out(start, view)
        except Exception as error:
            raise self._failure(error, start) from error

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
        """Let go of open files and connections, which are opened again for the next read."""
        with self._lock:
            idle, self._idle = self._idle, []
            opened, self._opened = self._opened, None
            self._s3, self._s3_tried = None, False
        for _, file in idle:
            file.close()
        if opened and opened[0].async_impl and _is_http(opened[0]):
            wait_for(opened[0], http.close(opened[0]), self._timeout)

    @property
    def _filesystem(self) -> Any:
        return self._open()[0]

    @property
    def _path(self) -> str:
        return self._open()[1]

    def _open(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None:
                import fsspec  # type: ignore[import-untyped]

                # One of its own, so that nobody else's use of it or its end is felt here.
                options = {**self._options, "skip_instance_cache": True}
                if "::" in self._url:
                    options = self._options
                try:
                    self._opened = fsspec.core.url_to_fs(self._url, **options)
                except ImportError as error:
                    raise self._missing(error) from error
            return self._opened

    def _missing(self, error: ImportError) -> ImportError:
        """Say how to install what fsspec lacks for such a URL."""
        protocols = re.findall(r"(?:^|::)(\w+)(?=://)", self._url)
        extras = {"s3": "s3", "s3a": "s3", "http": "fsspec", "https": "fsspec"}
        extra = next((extras[each] for each in protocols if each in extras), None)
        remedy = f": pip install 'pagemove[{extra}]'" if extra else ""
        return ImportError(f"{self.url} cannot be opened: {error}{remedy}", name=error.name)

    def _look(self) -> int:
        """Give the length; refuse what cannot be paged."""
        filesystem, path = self._open()
        if _is_http(filesystem):
            found = patiently(
                lambda left: self._run(http.look(filesystem, path), left),
                self._timeout,
                _is_transient,
            )
            self._version = found.version
            return int(found.nbytes)

        def ask(left: float) -> Any:
            if filesystem.async_impl:
                return self._run(filesystem._info(path), left)
            return filesystem.info(path)

        info = patiently(ask, self._timeout, _is_transient)
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it", self.url)
        self._version = str(info.get("ETag") or "")
        size = info.get("size")
        if size is None:
            raise ValueError(f"the length of {self.url} is not known: copy it into a file")
        return int(size)

    def _fetch(self, start: int, view: memoryview, seconds: float) -> None:
        """Read by one request."""
        filesystem, path = self._open()
        reader = self._s3_reader(filesystem, path)
        if reader is not None and not reader.hopeless and reader.read(start, view):
            return
        if _is_http(filesystem):
            request = http.read(filesystem, path, start, view.nbytes, self._version)
        else:
            request = filesystem._cat_file(path, start=start, end=start + view.nbytes)
        data = self._run(request, seconds)
        if len(data) != view.nbytes:
            raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {len(data)}")
        view[:] = data

    def _s3_reader(self, filesystem: Any, path: str) -> s3.Reader | None:
        """Give what reads it faster than the filesystem, if anything does."""
        with self._lock:
            if not self._s3_tried:
                self._s3_tried = True
                # Whatever obstore cannot be told, s3fs may do all the same.
                with contextlib.suppress(Exception):
                    self._s3 = s3.reader(
                        filesystem, path, self._version, self._options, self._try_seconds
                    )
            return self._s3

    @property
    def _try_seconds(self) -> float:
        """How long one try may take: half of what all may, so that there is a second."""
        return max(self._timeout / 2, 0.001)

    def _run(self, request: Any, left: float) -> Any:
        return wait_for(self._filesystem, request, min(left, self._try_seconds))

    def _copy_out(self, start: int, view: memoryview) -> None:
        """Read from an open file, if there is one that need not be read from its beginning."""
        with self._lock:
            behind = [each for each in self._idle if each[0] <= start]
            chosen = max(behind, key=lambda each: each[0], default=None)
            if chosen is None and len(self._idle) >= _MOST_IDLE:
                chosen = self._idle[0]
            if chosen is not None:
                self._idle.remove(chosen)
        file = chosen[1] if chosen else self._opened_file()
        try:
            file.seek(start)
            got = 0
            while got < view.nbytes:
                count = cast("Any", file).readinto(view[got:])
                if not count:
                    raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {got}")
                got += count
        except BaseException:
            file.close()
            raise
        with self._lock:
            self._idle.append((start + view.nbytes, file))

    def _opened_file(self) -> BinaryIO:
        filesystem, path = self._open()
        return cast("BinaryIO", filesystem.open(path, "rb"))

    def _failure(self, error: Exception, offset: int) -> StoreError:
        code = getattr(error, "errno", None)
        # obstore adds what its own developers want to know.
        text = str(error).partition("\n\nDebug source")[0] or type(error).__name__
        return StoreError(
            code if isinstance(code, int) and code else errno.EIO,
            f"cannot read {self!r} at byte {offset}: {text}",
            store=repr(self),
            operation="read",
            offset=offset,
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_url", "_options", "_timeout", "_version", "_copy", "_nbytes")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"FsspecStore({self.url!r})"


def _is_http(filesystem: Any) -> bool:
    return "https" in filesystem.protocol and filesystem.async_impl


def _is_transient(error: Exception) -> bool:
    stale = isinstance(error, OSError) and error.errno == errno.ESTALE
    # Of libraries whose exceptions all derive from one.
    unknown = "Credentials" in type(error).__name__
    if stale or unknown or isinstance(error, _FINAL):
        return False
    return http.is_passing(error) and s3.is_passing(error)

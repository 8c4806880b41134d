"""Where an array that is handed over can be fetched: a socket, and who comes there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl as tls
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy.typing as npt

from pagemove import limits
from pagemove.errors import StoreError
from pagemove.paging.given import Given
from pagemove.paging.open import region_of
from pagemove.paging.sizes import text_of
from pagemove.stores import wire
from pagemove.stores.descriptors import tell_in_child

if TYPE_CHECKING:
    from pagemove.paging.region import PagedMemory

_BACKLOG = 16
# Connections that have not said yet who they are. Of more the oldest are closed: who may take the
# array says so at once.
_MOST_STRANGERS = 32
_GREETING_SECONDS = 3.0

_beginning = threading.Lock()


def _in_child() -> None:
    # A thread that is not here may have had it.
    global _beginning
    _beginning = threading.Lock()


os.register_at_fork(after_in_child=_in_child)

_serving: weakref.WeakKeyDictionary[PagedMemory, Callable[[], Served | None]] = (
    weakref.WeakKeyDictionary()
)


def begin(
    array: npt.NDArray[Any],
    address: str | os.PathLike[str] | tuple[str, int],
    name: str | None,
    secret: str | bytes | None,
    ssl: tls.SSLContext | None,
    store_timeout: float,
) -> Served:
    """Check what `pagemove.serve` was called with, and do it."""
    place = wire.place_of(address)
    key = wire.secret_of(secret)
    if ssl is not None and not isinstance(ssl, tls.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, not {type(ssl).__name__}")
    if not store_timeout > 0:
        raise ValueError(f"store_timeout must be more than 0 s, not {store_timeout}")
    if ssl is not None and place.path:
        raise ValueError("ssl is for TCP: a Unix socket stays within this machine")
    if key is None and ssl is None and not place.is_local():
        raise ValueError(
            f"any process that reaches {place.host}:{place.port} could take it: pass secret= (and "
            "ssl= where others can read along), or serve at 127.0.0.1 or a Unix socket"
        )
    region = region_of(array)
    given = Given(array, region, store_timeout)
    place = place._replace(name=place.name if name is None else name)
    if wire.place_of(place.url).name != place.name:
        raise ValueError(
            f"name {place.name!r} cannot be part of an address: use letters and digits"
        )
    with _beginning:
        other = _serving.get(region, lambda: None)()
        if other is not None and not other._closed:
            raise ValueError(
                f"an array of the same region is being handed over already, at {other.url}: "
                "close that first; an array has one owner"
            )
        with limits.named():
            served = Served(given, place, key, ssl, store_timeout)
        region._lent_to = _serving[region] = weakref.ref(served)
    return served


class Served:
    """An array that is being handed over: what `serve` returns. Entered, it closes at the end.

    Attributes
    ----------
    url : str
        What the other process opens.

    Examples
    --------
    >>> import tempfile
    >>> import pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     numbers = pagemove.create_array(f"{folder}/x.npy", (1000,), "i8")
    ...     with pagemove.serve(numbers, ("127.0.0.1", 0)) as served:
    ...         served.progress, served.taken
    (0.0, False)
    """

    def __init__(
        self,
        given: Given,
        place: wire.Place,
        secret: bytes | None,
        context: tls.SSLContext | None,
        patience: float,
    ) -> None:
        self._given, self._secret, self._context, self._patience = given, secret, context, patience
        self._closed = False
        self._lock = threading.Lock()
        self._lines: set[wire.Line] = set()
        self._strangers: dict[wire.Line, None] = {}  # the oldest first
        self._threads: set[threading.Thread] = set()
        self._listener = _listen(place)
        if not place.path:
            place = place._replace(port=self._listener.getsockname()[1])
        self._place, self._name = place, place.name
        self.url = place.url
        tell_in_child(self)
        self._inode = os.stat(place.path).st_ino if place.path else 0
        self._thread = threading.Thread(target=self._accept, name="pagemove-serve", daemon=True)
        self._thread.start()

    @property
    def taken(self) -> bool:
        """Whether the other process is the owner."""
        return self._given.owner is not None

    @property
    def progress(self) -> float:
        """How much of the array is with the other process: from 0.0 to 1.0."""
        return self._given.acknowledged_bytes / self._given.nbytes

    def wait(self, timeout: float | None = None) -> None:
        """Return when all of the array is with the other process.

        Parameters
        ----------
        timeout : float, optional
            Seconds. None: for as long as it takes.

        Raises
        ------
        TimeoutError
            They are over. Wait again.
        StoreError
            The other process has been away for `store_timeout`, or the array was closed here, or
            written after the switch; the message says how much is missing there. If it comes back,
            it goes on: wait again.

        Examples
        --------
        >>> import tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numbers = pagemove.create_array(f"{folder}/x.npy", (1000,), "i8")
        ...     with pagemove.serve(numbers, ("127.0.0.1", 0)) as served:
        ...         try:
        ...             served.wait(timeout=0.01)
        ...         except TimeoutError:
        ...             "no process has connected"
        'no process has connected'
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        given = self._given
        with given.changed:
            while given.missing:
                if self._closed:
                    raise self._failure(errno.EBADF, "it was closed here")
                if given.broken:
                    raise self._failure(errno.EBUSY, given.broken)
                away = given.away_for()
                if away is not None and away >= self._patience:
                    raise self._failure(
                        errno.ETIMEDOUT,
                        f"the process that took it has been away for {away:.1f} s",
                    )
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(
                        errno.ETIMEDOUT,
                        f"{self.url}: {given.missing_bytes} of {given.nbytes} bytes are not yet "
                        "with the other process"
                        + ("" if self.taken else ", which has not connected"),
                    )
                given.changed.wait(min(self._patience / 4, 1.0 if left is None else left))

    def stats(self) -> dict[str, float]:
        """Return how far it is.

        Returns
        -------
        dict
            ``acknowledged_bytes``, ``missing_bytes``, ``sent_bytes``, ``connections``,
            ``switch_seconds``: for how long the array could not be written, at the switch.

        Examples
        --------
        >>> import tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numbers = pagemove.create_array(f"{folder}/x.npy", (1000,), "i8")
        ...     with pagemove.serve(numbers, ("127.0.0.1", 0)) as served:
        ...         served.stats()["missing_bytes"]
        8000
        """
        given = self._given
        return {
            "acknowledged_bytes": given.acknowledged_bytes,
            "missing_bytes": given.missing_bytes,
            "sent_bytes": given.sent,
            "connections": given.connections,
            "switch_seconds": given.switch_seconds,
        }

    def close(self) -> None:
        """Stop serving. Twice is fine.

        What has not been acknowledged stays here, and is lost to the other process: its touches of
        it are errors. The array stays as it is: read-only if it was taken.

        Examples
        --------
        >>> import tempfile
        >>> import pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numbers = pagemove.create_array(f"{folder}/x.npy", (1000,), "i8")
        ...     served = pagemove.serve(numbers, ("127.0.0.1", 0))
        ...     served.close()
        ...     numbers[0] = 1  # still here, still writable
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._strangers.clear()
            lines = list(self._lines)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._place.path:
            with contextlib.suppress(OSError):
                if os.stat(self._place.path).st_ino == self._inode:
                    os.unlink(self._place.path)
        for line in lines:
            line.close()
        self._thread.join()
        # They end with their lines; one that writes back for a switch takes longer.
        deadline = time.monotonic() + self._patience
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(deadline - time.monotonic(), 0))
        self._given.end()

    def _failure(self, code: int, why: str) -> StoreError:
        given = self._given
        return StoreError(
            code,
            f"cannot hand {text_of(given.nbytes)} over at {self.url}: {why}; {given.missing_bytes} "
            f"of {given.nbytes} bytes are not with the other process, and are still here",
            store=self.url,
            operation="read",
        )

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return
                time.sleep(0.05)  # no descriptors, or a caller that is gone again
                continue
            line = wire.Line(sock)
            thread = threading.Thread(
                target=self._meet, args=(line,), name="pagemove-serve", daemon=True
            )
            with self._lock:
                if self._closed:
                    line.close()
                    continue
                if len(self._strangers) >= _MOST_STRANGERS:
                    oldest = next(iter(self._strangers))
                    del self._strangers[oldest]
                    oldest.end()
                self._strangers[line] = None
                self._lines.add(line)
                self._threads = {each for each in self._threads if each.is_alive()} | {thread}
            try:
                thread.start()
            except RuntimeError:
                self._part_with(line)

    def _meet(self, line: wire.Line) -> None:
        """Serve a connection, if it is of who may take the array."""
        try:
            if self._greeted(line):
                try:
                    self._given.serve(line)
                finally:
                    self._given.leave()
        except (OSError, struct.error):
            pass  # the other side connects again
        finally:
            self._part_with(line)

    def _part_with(self, line: wire.Line) -> None:
        with self._lock:
            self._strangers.pop(line, None)
            self._lines.discard(line)
        line.close()

    def _hear(self, line: wire.Line) -> wire.Greeted:
        """Let who calls say what it wants, and prove that it may."""
        line.allow(min(_GREETING_SECONDS, self._patience))
        wire.quicken(line.sock, self._patience)
        if self._context is not None:
            line.hurry()
            with self._lock:
                if line not in self._strangers:
                    raise ConnectionAbortedError
                # What is wrapped is no more what can be shut down.
                line.sock = self._context.wrap_socket(
                    line.sock, server_side=True, do_handshake_on_connect=False
                )
            line.sock.do_handshake()
        greeted = wire.Greeted(line, self._secret)
        with self._lock:
            self._strangers.pop(line, None)
        line.allow(None)
        line.sock.settimeout(self._patience)
        return greeted

    def _greeted(self, line: wire.Line) -> bool:
        """Hear what is wanted; return whether it is of the owner, who wants blocks."""
        greeted = self._hear(line)
        if self._place.path and (user := wire.user_of(line.sock)) not in (os.geteuid(), 0):
            greeted.reply(
                errno.EACCES, f"the giver runs as user {os.geteuid()}, and this is user {user}"
            )
            return False
        want = greeted.want
        if self._name and want.get("name") not in ("", self._name):
            greeted.reply(errno.ENOENT, f"there is no array {want.get('name')!r} here")
            return False
        do, text = want.get("do"), ""
        try:
            if do == "describe":
                text = self._given.describe()
            elif do == "take":
                self._given.take(str(want.get("offer")), str(want.get("owner")))
            else:
                raise OSError(errno.EPROTO, f"a giver does not {do!r}")
        except OSError as error:
            greeted.reply(error.errno or errno.EIO, str(error.strerror or error)[:4000])
            return False
        try:
            greeted.reply(0, text)
        except OSError:
            if do == "take":
                self._given.leave()
            raise
        return bool(do == "take")

    def _in_child(self) -> None:
        # It is the parent that hands it over. The lines close themselves.
        self._closed = True
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "taken" if self.taken else "not taken"
        return f"<Served {self.url}, {state}, {100 * self.progress:.0f} % handed over>"


def _listen(place: wire.Place) -> socket.socket:
    if not place.path:
        family = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((place.host, place.port), family=family, backlog=_BACKLOG)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode of the file that bind(2) makes.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(place.path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        error.filename = place.path
        if error.errno == errno.EADDRINUSE:
            # Who has it may be stopped, or about to listen: it is not tried.
            error.strerror = f"{error.strerror}: remove it if the process that made it has ended"
        raise
    return listener

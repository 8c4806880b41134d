"""An array that another process hands over, as a store: it is there before its bytes are.

What brings it in is in C (``_native/pager/mechanisms/taking.h``): here is who is asked for what.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np

from pagemove._native.pager import Taken
from pagemove.errors import StoreError
from pagemove.stores import ranges, wire
from pagemove.stores.base import Store
from pagemove.stores.descriptors import tell_in_child

if TYPE_CHECKING:
    import ssl

    from pagemove._native.pager import _Taking
    from pagemove.stores.tunnels import Tunnel

    _Tls: TypeAlias = (
        bool | str | os.PathLike[str] | Mapping[str, Any] | Callable[[], ssl.SSLContext]
    )

_LARGEST_UNIT = 2 << 20
# A byte of memory each: at the largest units as much as a process can map.
_MOST_UNITS = 1 << 26
_FEW_UNITS = 1 << 24
_PAUSE_SECONDS = 0.02
# Of an answer to a touch that is asked for already, before it is asked for again.
_LATE_SECONDS = 0.05
_UNIX_FAMILY = struct.pack("=H", socket.AF_UNIX)


class Offer(NamedTuple):
    """What the giver says of the array.

    Attributes
    ----------
    key : str
        Of this offer: a giver that is started anew has another.
    dtype, shape, fortran
        The array. In Fortran's order the shape is that of the array, too.
    nbytes, unit : int
        Of all of it, and of what arrives as one.
    """

    key: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    nbytes: int
    unit: int


class Handover(NamedTuple):
    """Where the giver is, and how it is spoken to."""

    place: wire.Place
    secret: bytes | None
    tls: _Tls | None
    patience: float

    def call(self, want: Mapping[str, Any]) -> tuple[wire.Line, str]:
        """Open a connection, and say what is wanted; return what the giver says."""
        line = wire.connect(self.place, *_context(self.tls), self.patience)
        try:
            if self.place.path and self.secret is None:
                _check_user(wire.user_of(line.sock))
            return line, wire.greet(line, self.want(want), self.secret)
        except BaseException:
            line.close()
            raise

    def want(self, want: Mapping[str, Any]) -> bytes:
        """Put what is wanted as it is said."""
        return json.dumps({"name": self.place.name, **want}).encode()

    def connect_by_tls(self) -> ssl.SSLSocket:
        """Open a connection on which nothing has been said."""
        sock: Any = wire.connect(self.place, *_context(self.tls), self.patience).sock
        return cast("ssl.SSLSocket", sock)

    def described(self) -> tuple[wire.Line, str]:
        """Ask what is handed over, for as long as the giver says that it is about to say so."""
        while True:
            try:
                return self.call({"do": "describe"})
            except BlockingIOError as error:
                if error.errno != errno.EINPROGRESS:
                    raise
                time.sleep(_PAUSE_SECONDS)


class HandedStore(Store):
    """The bytes of an array that another process hands over, with `pagemove.serve`.

    The first read or write takes it: the giver's array is read-only from then on. What is touched
    comes at once, and all else in the background, in the giver's order. What has arrived is in an
    unnamed file of this store, and so is what is written.

    Parameters
    ----------
    url : str
        ``pagemove://host:port/name`` or ``pagemove+unix:///path#name``.
    secret : str or bytes, optional
        As the giver's.
    ssl : bool, path, mapping or callable, optional
        Speak TLS. True: with the certificates that the system trusts; the path of a file of such
        certificates; a mapping with ``cafile``, ``capath``, ``certfile``, ``keyfile``,
        ``server_hostname``; or a function of a module that returns an `ssl.SSLContext` (which
        cannot itself be sent to the process that runs the store).
    backing : path-like, optional
        Directory for the file; by default that for temporary files. ``"memory"``: memory.
    store_timeout : float
        Seconds that the giver may take for an answer.

    Raises
    ------
    ValueError
        `url` is no such URL; `secret` is empty.
    TypeError
        `ssl` cannot be sent to another process.
    OSError
        The giver cannot be reached. `StoreError`: it refuses, with the reason; EBUSY: another has
        the array already.
    """

    concurrency = 8
    restartable = False

    def __init__(
        self,
        url: str,
        *,
        secret: str | bytes | None = None,
        ssl: _Tls | None = None,
        backing: str | os.PathLike[str] | None = None,
        store_timeout: float = 5.0,
    ) -> None:
        place = wire.place_of(url)
        self.url = place.url
        self._from = Handover(place, wire.secret_of(secret), _sendable(ssl), store_timeout)
        self._backing = None if backing is None else os.fspath(backing)
        if self._backing not in (None, "memory"):
            self._backing = os.path.abspath(self._backing)
        self._begin()
        try:
            # What takes its time with the giver, writing back what was changed, is done now.
            line, text = self._from.described()
        except wire.RefusedError as error:
            raise self._failure(error.code, f"the giver refuses: {error}", "read", None) from None
        except BlockingIOError as error:
            raise self._failure(
                errno.EBUSY, f"the giver refuses: {error.strerror}", "read", None
            ) from None
        except OSError as error:
            error.add_note(f"{self.url}: the giver cannot be reached; is it serving there?")
            raise
        with line:
            self._address = _address_of(line.sock)
            self._offer = _offer(text)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._taken: Taken | None = None
        self._tunnel: Tunnel | None = None
        self._closed = False
        self._eager = False  # it is read at once
        self._quiet = False  # nothing comes in the background: for tests
        tell_in_child(self)

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._offer.nbytes

    @property
    def writable(self) -> bool:
        """True: what is here is this store's."""
        return True

    @property
    def offer(self) -> Offer:
        """What the giver says of the array."""
        return self._offer

    def read_into(self, offset: int, buffer: Any) -> None:
        """Fill a buffer; what of it is not here yet is asked for, before all else."""
        view = ranges.target(buffer)
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        if not view.nbytes:
            return
        taken = self._begun("read", start)
        try:
            taken.read_into(start, view)
        except OSError as error:
            raise self._said(error, "read", start) from None

    def write(self, offset: int, data: Any) -> None:
        """Write bytes here; of a unit that is not here, and not all written, the rest comes."""
        view = memoryview(data).cast("B")
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        if not view.nbytes:
            return
        taken = self._begun("write", start)
        try:
            taken.write(start, view)
        except OSError as error:
            raise self._said(error, "write", start) from None

    def flush(self) -> None:
        """See that what was written is in the file; it goes with the process."""
        if self._taken is not None:
            try:
                self._taken.flush()
            except OSError as error:
                raise self._said(error, "flush", None) from None

    def stats(self) -> dict[str, float]:
        """Return how much is here.

        Returns
        -------
        dict
            ``arrived_bytes`` and ``missing_bytes``, and ``connected``: whether the giver is there,
            as long as it is needed.
        """
        taken = self._taken
        if taken is None:
            return {"arrived_bytes": 0, "missing_bytes": self.nbytes, "connected": 0.0}
        said: dict[str, float] = json.loads(taken.stats())
        return said

    def close(self) -> None:
        """Drop what has arrived. Twice is fine."""
        with self._lock:
            taken, self._taken, self._closed = self._taken, None, True
            tunnel, self._tunnel = self._tunnel, None
        if taken is not None:
            taken.stop()
        if tunnel is not None:
            tunnel.close()

    def taking(self) -> _Taking | None:
        """Say it for C, without a helper; None: with TLS, which takes the interpreter.

        Raises
        ------
        StoreError
            EBUSY: this object has taken the array itself.
        """
        self._check_not_taken()
        return self._described(self._address) if self._is_taken_natively else None

    @property
    def _is_taken_natively(self) -> bool:
        return self._from.tls is None and type(self) is HandedStore

    def _described(self, address: bytes) -> _Taking:
        """Say who is asked for what: as the owner by a name of its own."""
        want = self._from.want({"do": "take", "offer": self._offer.key, "owner": wire.new_key()})
        folder = tempfile.gettempdir() if self._backing is None else self._backing
        return (
            address,
            want,
            self._from.secret,
            self.url.encode(errors="backslashreplace"),
            None if folder == "memory" else os.fsencode(folder),
            self._offer.unit,
            min(int(self._from.patience * 1e9), 2**62),
            int(_LATE_SECONDS * 1e9),
            self._eager,
            self._quiet,
        )

    def _begun(self, operation: str, offset: int) -> Taken:
        with self._lock:
            if self._closed:
                raise self._failure(errno.EBADF, "it is closed", operation, offset)
            if self._taken is None:
                try:
                    self._taken = self._begin_to_take()
                except OSError as error:
                    raise self._failure(
                        error.errno or errno.EIO, str(error.strerror), operation, offset
                    ) from error
            return self._taken

    def _begin_to_take(self) -> Taken:
        address = self._address
        if self._from.tls is not None:
            from pagemove.stores.tunnels import Tunnel  # and TLS

            self._tunnel = Tunnel(self._from.connect_by_tls)
            address = _UNIX_FAMILY + self._tunnel.address
        return Taken(self._described(address), self.nbytes)

    def _said(self, error: OSError, operation: str, offset: int | None) -> StoreError:
        """Raise what is said in C, with all that there is to say."""
        return StoreError(
            error.errno or errno.EIO,
            str(error.strerror),
            store=self.url,
            operation=operation,
            offset=offset,
        )

    def _failure(self, code: int, why: str, operation: str, offset: int | None) -> StoreError:
        at = "" if offset is None else f" at byte {offset}"
        return StoreError(
            code,
            f"cannot {operation} {self.url}{at}: {why}",
            store=self.url,
            operation=operation,
            offset=offset,
        )

    def _in_child(self) -> None:
        # What the parent takes is the parent's.
        taken = self._taken
        self._begin()
        self._closed = True
        if taken is not None:
            taken.forget()

    def _check_not_taken(self) -> None:
        if self._taken is not None:
            raise self._failure(
                errno.EBUSY,
                "it was taken by this process, and cannot be sent to another: serve it from here",
                "read",
                None,
            )

    def __getstate__(self) -> dict[str, Any]:
        self._check_not_taken()
        kept = ("url", "_from", "_backing", "_offer", "_address")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"HandedStore({self.url!r})"


def _address_of(sock: socket.socket) -> bytes:
    """Return where a connection leads, as connect(2) takes it."""
    found = sock.getpeername()
    if sock.family == socket.AF_UNIX:
        return _UNIX_FAMILY + os.fsencode(found) + b"\0"
    family, port = struct.pack("=H", sock.family), struct.pack("!H", found[1])
    if sock.family == socket.AF_INET:
        return family + port + socket.inet_aton(found[0]) + bytes(8)
    host = socket.inet_pton(sock.family, found[0].partition("%")[0])
    return family + port + struct.pack("!I", found[2]) + host + struct.pack("=I", found[3])


def _check_user(giver: int) -> None:
    # Whoever may write to the directory can listen there before the giver does.
    if giver not in (os.geteuid(), 0):
        raise wire.RefusedError(
            errno.EACCES,
            f"what serves there runs as user {giver}, and this is user {os.geteuid()}: use a "
            "directory that nobody else can write to, or give both sides the same secret",
        )


def _offer(text: str) -> Offer:
    """Read what the giver has said; StoreError would name nothing that helps: WireError."""
    try:
        said = ast.literal_eval(text)
        offer = Offer(
            str(said["key"]),
            np.lib.format.descr_to_dtype(said["descr"]),
            tuple(int(size) for size in said["shape"]),
            bool(said["fortran"]),
            int(said["nbytes"]),
            int(said["unit"]),
        )
        count = int(np.prod(offer.shape, dtype=object))
        fits = count * offer.dtype.itemsize == offer.nbytes and min(offer.shape, default=0) >= 0
        if offer.dtype.hasobject or not fits or not 0 < offer.nbytes < 2**63:
            raise ValueError("an array that cannot be")
        if not 4096 <= offer.unit <= _LARGEST_UNIT:
            raise ValueError(f"units of {offer.unit} bytes")
        if offer.nbytes > _MOST_UNITS * offer.unit:
            raise ValueError(
                f"it claims {offer.nbytes} bytes, and more than {_MOST_UNITS * offer.unit} in "
                f"units of {offer.unit} are not taken"
            )
    except Exception as error:
        raise wire.WireError(
            errno.EPROTO, f"what the giver says of the array cannot be read: {error}"
        ) from None
    return offer


def unit_for(nbytes: int) -> int:
    """Choose how much of so many bytes arrives as one: little, but not in too many units."""
    unit = 65536
    while unit < _LARGEST_UNIT and nbytes > _FEW_UNITS * unit:
        unit *= 2
    return unit


def describe(offer: Offer) -> str:
    """Write it as `_offer` reads it."""
    return repr(
        {
            "key": offer.key,
            "descr": np.lib.format.dtype_to_descr(offer.dtype),
            "shape": offer.shape,
            "fortran": offer.fortran,
            "nbytes": offer.nbytes,
            "unit": offer.unit,
        }
    )


def _sendable(tls: Any) -> Any:
    if tls is None or tls is False:
        return None
    if tls is True or isinstance(tls, str | os.PathLike):
        return tls
    if isinstance(tls, Mapping):
        known = {"cafile", "capath", "certfile", "keyfile", "server_hostname"}
        if unknown := sorted(set(tls) - known):
            raise ValueError(f"ssl has {unknown[0]!r}, and takes {', '.join(sorted(known))}")
        return dict(tls)
    if callable(tls):
        return tls
    raise TypeError(
        f"ssl is a {type(tls).__name__}, which cannot be sent to the process that runs the store: "
        "pass True, a file of certificates, a mapping such as {'cafile': ..., 'certfile': ...}, or "
        "a function of a module that returns the context"
    )


def _context(tls: Any) -> tuple[ssl.SSLContext | None, str | None]:
    if tls is None:
        return None, None
    import ssl

    if callable(tls):
        return tls(), None
    given = dict(tls) if isinstance(tls, Mapping) else {}
    if isinstance(tls, str | os.PathLike):
        given = {"cafile": tls}
    context = ssl.create_default_context(cafile=given.get("cafile"), capath=given.get("capath"))
    if given.get("certfile"):
        context.load_cert_chain(given["certfile"], given.get("keyfile"))
    return context, given.get("server_hostname")

"""How two processes speak that hand an array over: addresses, the greeting, frames.

The giver speaks first: what it is, and a number used once. The taker answers with a number of its
own, what it wants, and the proof that it has the secret; only then the giver proves the same, and
says anything of the array. After that the taker asks, and the giver answers, in order.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pagemove.stores.descriptors import tell_in_child

if TYPE_CHECKING:
    import ssl

VERSION = 2
_GIVING, _TAKING = b"pagemove giving\n", b"pagemove taking\n"
# Magic, version, whether a secret is used, a number used once.
_HELLO = struct.Struct("<16sHH32s")
# The same, with the proof, and the length of what is wanted.
_WANT = struct.Struct("<16sHH32s32sI")
# errno, proof, length of the text.
_REPLY = struct.Struct("<i32sI")
#: Of what is at the other end of a Unix socket: process, user, group.
PEER = struct.Struct("=iII")
_LARGEST_WANT = 4096
_LARGEST_TEXT = 1 << 20

# Kind, first unit, how many.
REQUEST = struct.Struct("<B7xQQ")
# Kind, errno, first unit, how many, bytes that follow.
ANSWER = struct.Struct("<B3xiQQQ")
# errno, length of a text: whether the bytes before it are what they should be.
VERDICT = struct.Struct("<iI")
READ, ACKNOWLEDGE, HAVE, ORDER = range(1, 5)
#: Of the answers to READ: all zero, no bytes follow; and that they are in the taker's file, which
#: it has passed with a request of kind FILE: no bytes follow either.
ZEROS, FILE, IN_FILE = range(5, 8)


class WireError(ConnectionError):
    """The other side does not keep to the protocol."""


class RefusedError(Exception):
    """The other side has said no, and that will not change: its errno and its words."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Place(NamedTuple):
    """Where an array is handed over: an address of TCP or of a Unix socket, and a name."""

    host: str
    port: int
    path: str
    name: str

    @property
    def url(self) -> str:
        """What the other side opens."""
        if self.path:
            return f"pagemove+unix://{self.path}" + (f"#{self.name}" if self.name else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"pagemove://{host}:{self.port}" + (f"/{self.name}" if self.name else "")

    def is_local(self) -> bool:
        """Return whether only processes of this machine can connect to it."""
        if self.path:
            return True
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(each[4][0]).is_loopback for each in found)


_TCP = re.compile(r"(?:pagemove://)?(\[[^\]/]+\]|[^:/@\[\]]+):(\d{1,5})(?:/([^/?#]*))?$")
_UNIX = re.compile(r"(?:pagemove\+unix://|unix:(?://)?)?(/[^#\0]+)(?:#(.*))?$")


def new_key() -> str:
    """Return a name that is not in use."""
    return secrets.token_hex(16)


def place_of(address: Any) -> Place:
    """Read an address; ValueError."""
    if isinstance(address, tuple) and len(address) == 2:
        return Place(str(address[0]), int(address[1]), "", "")
    text = os.fsdecode(address)
    if "@" in text.partition("#")[0] and not text.startswith(("/", "unix:", "pagemove+unix:")):
        raise ValueError(
            "an address has neither a user nor a password: pass the secret as "
            "storage_options={'secret': ...}"
        )
    found = _UNIX.match(text)
    if found:
        return Place("", 0, found[1], found[2] or "")
    found = _TCP.match(text)
    if found is None or int(found[2]) > 65535:
        raise ValueError(
            f"{text!r} is no address to hand an array over at: write 'host:port', "
            "'pagemove://host:port/name', '/path/of/a/socket', or 'pagemove+unix:///path#name'"
        )
    return Place(found[1].strip("[]"), int(found[2]), "", found[3] or "")


class Line:
    """A connection that sends and receives whole things, or raises. For one thread.

    Attributes
    ----------
    sock : socket.socket
        Its timeout is that of each part of what is received.
    deadline : float or None
        By `time.monotonic`; until then all that is sent and received has to be through.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline: float | None = None
        tell_in_child(self)

    def allow(self, seconds: float | None) -> None:
        """Have what comes next be through in so many seconds, however little comes at a time."""
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def hurry(self) -> None:
        """Have the next call on the socket take no longer than there is time."""
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "the other side is too slow")
            self.sock.settimeout(left)

    def send(self, *parts: Any) -> None:
        """Send all of it."""
        for part in parts:
            self.hurry()
            self.sock.sendall(part)

    def receive(self, nbytes: int) -> bytearray:
        """Receive so many bytes."""
        data = bytearray(nbytes)
        self.receive_into(memoryview(data))
        return data

    def receive_into(self, view: memoryview) -> None:
        """Fill a buffer."""
        at, end = 0, len(view)
        while at < end:
            self.hurry()
            got = self.sock.recv_into(view[at:])
            if not got:
                raise ConnectionResetError(errno.ECONNRESET, "the other side closed the connection")
            at += got

    def end(self) -> None:
        """End it for a thread that waits in it, which closes it."""
        with contextlib.suppress(OSError):
            # Not that of TLS, which would have what is sent next go out as it is.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, also for a thread that waits in it. Twice is fine."""
        self.end()
        self.sock.close()

    def _in_child(self) -> None:
        # Not shut down: it is the parent's. But as long as it is open here, its end is not seen.
        with contextlib.suppress(OSError):
            os.close(self.sock.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def user_of(sock: socket.socket) -> int:
    """Return the user that the process at the other end of a Unix socket runs as."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return int(PEER.unpack(data)[1])


def quicken(sock: socket.socket, patience: float) -> None:
    """Have small frames sent at once, and a machine that is gone noticed."""
    if sock.family == socket.AF_UNIX:
        return
    seconds = max(1, round(patience))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * max(1, patience)))


def connect(
    place: Place, context: ssl.SSLContext | None, server_hostname: str | None, patience: float
) -> Line:
    """Open a connection to the giver."""
    if place.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(patience)
            sock.connect(place.path)
        except BaseException:
            sock.close()
            raise
    else:
        sock = socket.create_connection((place.host, place.port), timeout=patience)
    try:
        quicken(sock, patience)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=server_hostname or place.host)
    except BaseException:
        sock.close()
        raise
    return Line(sock)


def greet(line: Line, body: bytes, secret: bytes | None) -> str:
    """Say what a taker wants, and return what the giver says to it.

    Raises
    ------
    RefusedError
        By the giver; or it does not have the secret.
    BlockingIOError
        The giver cannot yet: EINPROGRESS where it is about to, EAGAIN where something prevents it.
    WireError
        It is no giver.
    """
    patience = line.sock.gettimeout()
    line.allow(patience)
    magic, version, asks, theirs = _HELLO.unpack(line.receive(_HELLO.size))
    line.allow(patience)
    if magic != _GIVING:
        raise WireError(errno.EPROTO, "what answers there is not handing over an array")
    if version != VERSION:
        raise RefusedError(
            errno.EPROTO,
            f"the giver speaks version {version} of the protocol, and this is {VERSION}: have the "
            "same version of pagemove on both sides",
        )
    if bool(asks) != (secret is not None):
        raise RefusedError(
            errno.EACCES,
            "the giver asks for a secret: pass storage_options={'secret': ...}"
            if asks
            else "the giver has no secret, and this side was given one: serve it with the same",
        )
    mine = secrets.token_bytes(32)
    proof = _proof(secret, b"taker", theirs, mine, body)
    line.send(_WANT.pack(_TAKING, VERSION, asks, mine, proof, len(body)) + body)
    code, proof, length = _REPLY.unpack(line.receive(_REPLY.size))
    if length > _LARGEST_TEXT:
        raise WireError(errno.EPROTO, f"a reply of {length} bytes")
    data = bytes(line.receive(length))
    line.allow(None)
    line.sock.settimeout(patience)
    if code == errno.EACCES:
        raise RefusedError(code, data.decode(errors="replace"))
    if not hmac.compare_digest(proof, _proof(secret, b"giver", theirs, mine, data)):
        raise RefusedError(
            errno.EACCES, "the giver does not have the secret: it may be another program"
        )
    text = data.decode(errors="replace")
    if code in (errno.EAGAIN, errno.EINPROGRESS):
        raise BlockingIOError(code, text)
    if code:
        raise RefusedError(code, text)
    return text


class Greeted:
    """A taker as a giver meets it: what it wants, once it has proved that it may.

    Raises
    ------
    WireError
        It is no taker.
    PermissionError
        It does not have the secret; it was told so.
    """

    def __init__(self, line: Line, secret: bytes | None) -> None:
        self._line, self._secret = line, secret
        self._mine = secrets.token_bytes(32)
        uses = int(secret is not None)
        line.send(_HELLO.pack(_GIVING, VERSION, uses, self._mine))
        fields = _WANT.unpack(line.receive(_WANT.size))
        magic, version, asks, self._theirs, proof, length = fields
        if magic != _TAKING or version != VERSION or asks != uses or length > _LARGEST_WANT:
            raise WireError(errno.EPROTO, "what called is not a taker of this version")
        body = bytes(line.receive(length))
        expected = _proof(secret, b"taker", self._mine, self._theirs, body)
        if not hmac.compare_digest(proof, expected):
            text = b"the giver has another secret"
            line.send(_REPLY.pack(errno.EACCES, bytes(32), len(text)) + text)
            raise PermissionError(errno.EACCES, "a taker has another secret")
        try:
            self.want: dict[str, Any] = dict(json.loads(body))
        except (ValueError, TypeError, RecursionError) as error:
            raise WireError(errno.EPROTO, f"what is wanted cannot be read: {error}") from None

    def reply(self, code: int, text: str) -> None:
        """Say yes (0), or why not."""
        data = text.encode()
        proof = _proof(self._secret, b"giver", self._mine, self._theirs, data)
        self._line.send(_REPLY.pack(code, proof, len(data)) + data)


def _proof(secret: bytes | None, who: bytes, giver: bytes, taker: bytes, body: bytes) -> bytes:
    if secret is None:
        return bytes(32)
    # All but the body have a fixed length, so nothing can be moved from one part to another.
    return hmac.digest(secret, who + giver + taker + body, hashlib.sha256)


def secret_of(secret: str | bytes | None) -> bytes | None:
    """Take a secret as bytes; ValueError for an empty one."""
    if secret is None:
        return None
    data = secret.encode() if isinstance(secret, str) else bytes(secret)
    if not data:
        raise ValueError("an empty secret protects nothing: use secrets.token_hex(32)")
    return data

"""An end to every wait for a Redis server, and to every answer of it.

redis-py has a timeout for each recv(2), so that a server which sends a byte now and then is waited
for forever, and takes whatever length an answer says. Its connections have a socket here that knows
when the call has to be over and how much an answer may be.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

#: Of one answer that redis-py takes in: the list of all commands has a third of that.
MOST_NBYTES = 1 << 20
_MOST_NODES = 1000
_SLOTS = 16384

_limits = threading.local()


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let nothing that this thread does with a bounded connection take longer, in all."""
    before = getattr(_limits, "deadline", None)
    _limits.deadline = time.monotonic() + seconds
    try:
        yield
    finally:
        _limits.deadline = before


def _left() -> float | None:
    deadline = getattr(_limits, "deadline", None)
    if deadline is None:
        return None
    left: float = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class BoundedSocket:
    """A connected socket that keeps to the limits of the calling thread.

    Parameters
    ----------
    sock : socket
        With the timeout that a single call is to have.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeout = self._armed = sock.gettimeout()
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._allowed = MOST_NBYTES

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout of a single call."""
        self._timeout = self._armed = seconds
        self._sock.settimeout(seconds)

    def sendall(self, data: Any) -> None:
        """Send a request; what is received from now on is its answer."""
        self._allowed = MOST_NBYTES
        self._arm()
        self._sock.sendall(data)

    def recv(self, *arguments: Any) -> bytes:
        """Receive, within what an answer may be."""
        self._arm()
        data = self._sock.recv(*arguments)
        self._count(len(data))
        return data

    def recv_into(self, *arguments: Any) -> int:
        """Receive, within what an answer may be."""
        self._arm()
        return self._count(self._sock.recv_into(*arguments))

    def fill(self, buffers: Sequence[memoryview | bytearray]) -> int:
        """Receive into buffers whose lengths are the bound."""
        self._arm()
        if self._is_tls:  # which cannot fill several buffers at once
            count = self._sock.recv_into(buffers[0])
        else:
            count = self._sock.recvmsg_into(buffers)[0]
        if not count:
            raise ConnectionResetError("closed by the server")
        return count

    def _arm(self) -> None:
        if self._timeout == 0:
            return
        left = _left()
        if left is None:
            return
        seconds = left if self._timeout is None else min(left, self._timeout)
        if seconds != self._armed:  # which is a system call
            self._armed = seconds
            self._sock.settimeout(seconds)

    def _count(self, count: int) -> int:
        self._allowed -= count
        if self._allowed < 0:
            raise OSError(errno.EBADMSG, f"an answer of more than {MOST_NBYTES} bytes")
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@functools.cache
def pool_class() -> type[Any]:
    """Make a connection pool of redis-py whose connections have such sockets."""
    import redis

    class BoundedPool(redis.ConnectionPool):
        def __init__(self, connection_class: Any = redis.Connection, **options: Any) -> None:
            # Answers are read here as they come in the second version of the protocol.
            options |= {"protocol": 2, "decode_responses": False}
            # What only the third version has, and a cluster's client wants by itself.
            options.pop("maint_notifications_config", None)
            options.pop("oss_cluster_maint_notifications_handler", None)
            super().__init__(_bounded(connection_class), **options)

    return BoundedPool


@functools.cache
def _bounded(kind: Any) -> Any:
    """Make of a kind of connection one whose sockets and answers are bounded."""
    import redis

    class Bounded(kind):  # type: ignore[misc]
        def _connect(self) -> BoundedSocket:
            usual: Any = self.socket_connect_timeout  # type: ignore[has-type]
            left = _left()
            try:
                if left is not None:
                    self.socket_connect_timeout = left if usual is None else min(left, usual)
                return BoundedSocket(super()._connect())
            finally:
                self.socket_connect_timeout = usual

        def read_response(self, *arguments: Any, **options: Any) -> Any:
            try:
                answer = super().read_response(*arguments, **options)
            except (RecursionError, ValueError, IndexError, TypeError, OverflowError) as error:
                self.disconnect()
                raise redis.InvalidResponse(
                    f"the answer is not one of Redis ({type(error).__name__})"
                ) from error
            if not _is_plausible(answer):
                self.disconnect()
                raise redis.InvalidResponse("the answer describes no cluster that there can be")
            return answer

    return Bounded


def _is_plausible(answer: Any) -> bool:
    """Return whether an answer, if it says which node has which slots, can be true.

    redis-py makes an entry a slot, and a client a node, however many there are said to be.
    """
    if not (isinstance(answer, list) and answer and isinstance(answer[0], list)):
        return True
    if not all(isinstance(number, int) for number in answer[0][:2]):
        return True  # the list of commands
    nodes = set()
    for share in answer:
        if not (isinstance(share, list) and len(share) >= 3):
            return False
        first, last, *members = share
        if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < _SLOTS):
            return False
        for member in members:
            if not (isinstance(member, list) and len(member) >= 2):
                return False
            nodes.add((member[0], member[1]) if isinstance(member[1], int) else None)
    return None not in nodes and len(nodes) <= _MOST_NODES and len(answer) <= _SLOTS

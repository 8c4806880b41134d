"""Blocks straight from a Redis connection into their buffers.

redis-py copies what arrives four times: out of the socket, into a buffer, out of that, and without
the line's end; and then it is still to go where it is wanted. Here the kernel puts it there. The
connection is redis-py's, made, authenticated, checked and kept by it; only the answers to commands
that read are taken from its socket here, since little of the protocol is needed for that.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any

#: In place of a value that has been put where it was wanted.
FILLED: Any = type("Filled", (), {"__repr__": lambda _: "FILLED"})()

# The end of one value, and the beginning of the next.
_AHEAD = 512


class Unusual(Exception):  # noqa: N818 (the usual way will tell what it is)
    """An answer that only redis-py understands: an error, or another protocol."""


def ask(
    client: Any, commands: Sequence[Sequence[Any]], targets: Sequence[memoryview | None]
) -> list[Any]:
    """Send commands that read in one go; give their answers.

    Parameters
    ----------
    client : redis.Redis
        Of one server.
    commands : sequence
        Each the words of one.
    targets : sequence of memoryview or None
        Where the values go, in the order in which they come, those in lists one by one. A value of
        another length than its target, or without one, is given as it is.

    Raises
    ------
    Unusual
        Nothing is known. Commands may have been carried out.
    redis.ConnectionError, redis.TimeoutError
        As of redis-py.
    """
    import redis

    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        sock = getattr(connection, "_sock", None)
        if not isinstance(sock, socket.socket):
            raise Unusual
        connection.send_packed_command(connection.pack_commands(commands))
        answers = _Answers(sock, targets)
        return [answers.next() for _ in commands]
    except BaseException as error:
        # What is left of the answers must not be taken for those of the next commands.
        connection.disconnect()
        if isinstance(error, TimeoutError):
            raise redis.TimeoutError("Timeout reading from socket") from error
        if isinstance(error, OSError):
            raise redis.ConnectionError(f"Error while reading from socket: {error}") from error
        raise
    finally:
        pool.release(connection)


class _Answers:
    """Takes answers from a socket.

    Parameters
    ----------
    sock : socket
        With the timeout that it is to have.
    targets : sequence of memoryview or None
        As for `ask`.
    """

    def __init__(self, sock: socket.socket, targets: Sequence[memoryview | None]) -> None:
        self._sock = sock
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._targets = iter(targets)
        self._ahead = bytearray(_AHEAD)
        self._start = self._end = 0

    def next(self) -> Any:
        """Give one."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"*":
            return [self.next() for _ in range(int(rest))]
        if kind == b"$":
            return self._value(int(rest))
        if kind == b"_":  # RESP3
            return self._value(-1)
        if kind == b":":
            return int(rest)
        raise Unusual

    def _value(self, length: int) -> Any:
        target = next(self._targets, None)
        if length < 0:
            return None
        fits = target is not None and target.nbytes == length
        into = target if fits and target is not None else memoryview(bytearray(length))
        got = min(length, self._end - self._start)
        into[:got] = memoryview(self._ahead)[self._start : self._start + got]
        self._start += got
        if got < length:
            self._start = self._end = 0
        while got < length:
            got += self._receive([into[got:], self._ahead])
        if got > length:
            self._end = got - length
        while self._end - self._start < 2:
            self._more()
        self._start += 2
        return FILLED if fits else bytes(into)

    def _line(self) -> bytes:
        while True:
            end = self._ahead.find(b"\r\n", self._start, self._end)
            if end >= 0:
                line = bytes(self._ahead[self._start : end])
                self._start = end + 2
                return line
            if self._end - self._start > _AHEAD // 2:
                raise Unusual
            self._more()

    def _more(self) -> None:
        """Receive behind what is there already."""
        left = self._ahead[self._start : self._end]
        self._ahead[: len(left)] = left
        self._start, self._end = 0, len(left)
        self._end += self._receive([memoryview(self._ahead)[self._end :]])

    def _receive(self, buffers: Sequence[memoryview | bytearray]) -> int:
        if self._is_tls:  # which cannot fill several buffers at once
            count = self._sock.recv_into(buffers[0])
        else:
            count = self._sock.recvmsg_into(buffers)[0]
        if not count:
            raise ConnectionResetError("closed by the server")
        return count

"""Blocks straight from a Redis connection into their buffers, and every answer within bounds.

redis-py copies what arrives four times: out of the socket, into a buffer, out of that, and without
the line's end; and then it is still to go where it is wanted. Here the kernel puts it there. The
connection is redis-py's, made, authenticated, checked and kept by it; only the answers are taken
from its socket here, since little of the protocol is needed for that.

The protocol has no numbers that say to which request an answer belongs. An answer too many, of a
request that something on the way has sent twice, would shift all that follow by one. So each batch
ends with a word that no other batch has, to be echoed; where that does not come back at its place,
nothing that came is what it seems.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

#: What begins a block and does not go where its bytes go.
HEAD = 32
#: The end of one value, and the beginning of the next; also the longest line.
_AHEAD = 2048
_DEEPEST = 3


class Command(NamedTuple):
    """A command.

    Attributes
    ----------
    key : str
        Says which node of a cluster it is for.
    words : tuple
        As they are sent.
    targets : tuple of memoryview or None
        For each value that it answers, in the order in which they come, those in lists one by one:
        where it shall go, without its first `HEAD` bytes. In its place the answer then has a
        `Filled`. A value of another length than that, or without a target, is given as it is.
    longest : int
        Bytes of a value that it may answer.
    """

    key: str
    words: tuple[Any, ...]
    targets: tuple[memoryview | None, ...] = ()
    longest: int = 16 << 10


class Filled(NamedTuple):
    """In place of a value that has been put where it was wanted.

    Attributes
    ----------
    head : bytes
        Its first `HEAD` bytes.
    """

    head: bytes


def ask(client: Any, commands: Sequence[Command]) -> list[Any]:
    """Send commands to one server in one go; return their answers, or exceptions of redis-py.

    Parameters
    ----------
    client : redis.Redis
        Of one server, with connections of `redis_bounds`.
    commands : sequence of Command
        What to send.

    Raises
    ------
    redis.InvalidResponse
        What came is no answer to that: of another shape or length, or in another place. Commands
        may have been carried out.
    redis.ConnectionError, redis.TimeoutError
        As of redis-py.
    """
    import redis

    pool = client.connection_pool
    mark = secrets.token_hex(8)
    last = Command("", ("ECHO", mark))
    connection = pool.get_connection()
    try:
        words = [command.words for command in (*commands, last)]
        connection.send_packed_command(connection.pack_commands(words))
        answers = _Answers(connection._sock, connection._parser.parse_error)
        found = [answers.next(command) for command in commands]
        if (echoed := answers.next(last)) != mark.encode():
            if isinstance(echoed, Exception):
                raise echoed
            raise redis.InvalidResponse(
                f"an answer to another request, or no ECHO: {echoed!r:.200}"
            )
        return found
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
    """Takes answers from a socket, none longer than what was asked for.

    Parameters
    ----------
    sock : BoundedSocket
        Knows how long that may take.
    parse_error : callable
        Makes an exception of the text of an error.
    """

    def __init__(self, sock: Any, parse_error: Any) -> None:
        self._sock = sock
        self._parse_error = parse_error
        self._targets: Iterator[memoryview | None] = iter(())
        self._longest = self._values = 0
        self._ahead = bytearray(_AHEAD)
        self._start = self._end = 0

    def next(self, command: Command) -> Any:
        """Return the one to a command."""
        self._targets = iter(command.targets)
        self._longest = command.longest
        self._values = len(command.words) + 4
        return self._next(0)

    def _next(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        self._values -= 1
        if kind == b"-":
            return self._parse_error(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        if kind not in (b"*", b"$", b":"):
            raise _refused(f"an answer of an unknown kind: {line[:100]!r}")
        number = _number(rest)
        if kind == b":":
            return number
        if number < -1:
            raise _refused(f"a length of {number}")
        if kind == b"$":
            return self._value(number)
        if number < 0:
            return None
        if number > self._values or depth == _DEEPEST:
            raise _refused(f"more values than were asked for: {number}, in lists {depth} deep")
        return [self._next(depth + 1) for _ in range(number)]

    def _value(self, length: int) -> Any:
        target = next(self._targets, None)
        if length < 0:
            return None
        if length > self._longest:
            raise _refused(f"a value of {length} bytes, of at most {self._longest} asked for")
        head = b""
        if target is not None and target.nbytes + HEAD == length:
            while self._end - self._start < HEAD:
                self._more()
            head = bytes(self._ahead[self._start : self._start + HEAD])
            self._start += HEAD
            into, length = target, length - HEAD
        else:
            into = memoryview(bytearray(length))
        got = min(length, self._end - self._start)
        into[:got] = memoryview(self._ahead)[self._start : self._start + got]
        self._start += got
        if got < length:
            self._start = self._end = 0
        while got < length:
            got += self._sock.fill([into[got:], self._ahead])
        if got > length:
            self._end = got - length
        while self._end - self._start < 2:
            self._more()
        if self._ahead[self._start : self._start + 2] != b"\r\n":
            raise _refused("a value that is longer than it says")
        self._start += 2
        return Filled(head) if head else bytes(into)

    def _line(self) -> bytes:
        while True:
            end = self._ahead.find(b"\r\n", self._start, self._end)
            if end >= 0:
                line = bytes(self._ahead[self._start : end])
                self._start = end + 2
                return line
            if self._end - self._start == _AHEAD:
                raise _refused(f"a line of more than {_AHEAD} bytes")
            self._more()

    def _more(self) -> None:
        """Receive behind what is there already."""
        left = self._ahead[self._start : self._end]
        self._ahead[: len(left)] = left
        self._start, self._end = 0, len(left)
        self._end += self._sock.fill([memoryview(self._ahead)[self._end :]])


def _number(text: bytes) -> int:
    # Not whatever int() takes: blanks, underscores, thousands of digits.
    if not text.removeprefix(b"-").isdigit() or len(text) > 20:
        raise _refused(f"no number: {text[:100]!r}")
    return int(text)


def _refused(why: str) -> Exception:
    import redis

    return redis.InvalidResponse(why)

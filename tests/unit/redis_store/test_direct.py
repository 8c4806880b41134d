"""stores/redis_direct.py: answers, however they arrive, and what is not one."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pagemove.stores import redis_direct
from pagemove.stores.redis_direct import HEAD, Command, Filled
from support.servers import Redis, free_ports

redis = pytest.importorskip("redis")

from pagemove.stores.redis_bounds import BoundedSocket, limited, pool_class  # noqa: E402

LONG = np.random.default_rng(4).bytes(HEAD + 3000)
MARK = b"<mark>"


class Pool:
    """Has one connection, whose other end is in the hands of a test."""

    def __init__(self, sock: socket.socket, theirs: socket.socket) -> None:
        self.connection_pool = self._parser = self
        self.parse_error = redis.ResponseError
        self._sock = BoundedSocket(sock)
        self._theirs = theirs
        self.pieces: list[bytes] = []
        self.then: Callable[[socket.socket], object] = lambda _: None
        self.sent: list[tuple[str, ...]] = []
        self.disconnected = self.released = 0

    def get_connection(self) -> Pool:
        return self

    def release(self, connection: Pool) -> None:
        assert connection is self
        self.released += 1

    def pack_commands(self, commands: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return commands

    def send_packed_command(self, packed: list[tuple[str, ...]]) -> None:
        """Have a thread answer, with the word that is to be echoed in place of MARK."""
        self.sent = packed[:-1]
        echo, mark = packed[-1]
        assert echo == "ECHO"
        word = b"$%d\r\n%b\r\n" % (len(mark), mark.encode())
        pieces = [piece.replace(MARK, word) for piece in self.pieces]
        self.thread = threading.Thread(target=self._answer, args=(pieces,))
        self.thread.start()

    def _answer(self, pieces: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                self._theirs.sendall(piece)
            self.then(self._theirs)

    def disconnect(self) -> None:
        self.disconnected += 1
        self._sock.close()


@pytest.fixture
def pool() -> Iterator[Callable[..., Pool]]:
    """Make one whose server answers in pieces, and then is gone, if it is to be."""
    with contextlib.ExitStack() as stack:

        def make(pieces: list[bytes], *, gone: bool = True, seconds: float = 10) -> Pool:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            ours.settimeout(seconds)
            made = Pool(ours, theirs)
            made.pieces = pieces
            if gone:
                made.then = lambda sock: sock.shutdown(socket.SHUT_WR)
            stack.callback(lambda: made.thread.join())
            stack.callback(ours.close)
            return made

        yield make


def targets(*lengths: int) -> tuple[memoryview, ...]:
    return tuple(memoryview(bytearray(length)) for length in lengths)


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def get(*into: memoryview, longest: int = 5000) -> Command:
    return Command("a", ("GET", "a"), into, longest)


class TestAnswers:
    TEXT = b"*4\r\n" + bulk(LONG) + b"$-1\r\n" + bulk(b"") + bulk(b"four") + b":17\r\n" + bulk(LONG)

    def check(self, pool: Pool) -> None:
        into = targets(3000, 10, 5, 5, 3000)
        commands = [
            Command("a", ("MGET", "a"), into[:4], len(LONG)),
            Command("b", ("LLEN", "b")),
            get(into[4], longest=len(LONG)),
        ]
        found = redis_direct.ask(pool, commands)
        head = Filled(LONG[:HEAD])
        assert found == [[head, None, b"", b"four"], 17, head]
        assert bytes(into[0]) == bytes(into[-1]) == LONG[HEAD:]
        assert pool.sent == [("MGET", "a"), ("LLEN", "b"), ("GET", "a")]
        assert (pool.disconnected, pool.released) == (0, 1)

    def test_at_once(self, pool):
        self.check(pool([self.TEXT + MARK]))

    @pytest.mark.parametrize("length", [1, 2, 3, 7, 100, 511, 512, 513, 2999])
    def test_in_pieces(self, pool, length):
        starts = range(0, len(self.TEXT), length)
        self.check(pool([*(self.TEXT[start : start + length] for start in starts), MARK]))

    def test_cut_anywhere(self, pool):
        text = bulk(b"h" * HEAD + b"0123456789") + bulk(b"ab")
        for cut in range(len(text)):
            given = pool([text[:cut], text[cut:], MARK])
            (into,) = targets(10)
            found = redis_direct.ask(given, [get(into), get()])
            assert found == [Filled(b"h" * HEAD), b"ab"]
            assert bytes(into) == b"0123456789"

    def test_errors_are_answers(self, pool):
        given = pool([b"-ERR no\r\n" + bulk(b"a") + MARK])
        error, value = redis_direct.ask(given, [get(), get()])
        assert isinstance(error, redis.ResponseError)
        assert (str(error), value, given.disconnected) == ("ERR no", b"a", 0)


class TestNoAnswer:
    """The connection is closed, so that nothing that was left is taken for another answer."""

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            (b">1\r\n" + bulk(b"a") + MARK, "unknown kind"),
            (b"HTTP/1.1 400 Bad Request\r\n", "unknown kind"),
            (b"x" * 100_000, "a line of more than"),
            (b"+" + b"x" * 100_000, "a line of more than"),
            (b"$536870912\r\n", "536870912 bytes, of at most 5000"),
            (b"*1000000000\r\n", "more values than were asked for"),
            (b"*1\r\n" * 100_000, "lists 3 deep"),
            (b"*6\r\n*6\r\n" + b":1\r\n" * 6, "more values than were asked for"),
            (b"$-7\r\n", "a length of -7"),
            (b":1_0\r\n", "no number"),
            (b":" + b"9" * 1000 + b"\r\n", "no number"),
            (b"$ 3\r\nabc\r\n", "no number"),
            (b"$3\r\nabcdefg\r\n" + MARK, "longer than it says"),
        ],
    )
    def test_what_was_not_asked_for(self, pool, text, why):
        given = pool([text])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(redis.InvalidResponse, match=why):
            redis_direct.ask(given, [get(*targets(5))])
        assert (given.disconnected, given.released) == (1, 1)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10

    @pytest.mark.parametrize(
        "text",
        [
            bulk(b"h" * HEAD + b"stale") + bulk(b"h" * HEAD + b"right") + MARK,
            bulk(b"h" * HEAD + b"right") * 2 + MARK,
            b"+QUEUED\r\n+QUEUED\r\n",
        ],
    )
    def test_an_answer_too_many(self, pool, text):
        given = pool([text])
        with pytest.raises(redis.InvalidResponse, match="an answer to another request"):
            redis_direct.ask(given, [get(*targets(5))])
        assert (given.disconnected, given.released) == (1, 1)

    def test_a_server_that_refuses_to_echo(self, pool):
        given = pool([bulk(b"a") + b"-NOPERM no\r\n"])
        with pytest.raises(redis.ResponseError, match="NOPERM"):
            redis_direct.ask(given, [get()])
        assert given.disconnected == 1

    @pytest.mark.parametrize("text", [b"", b"$5\r", b"$5\r\nabc", b"$5\r\nabcde", b"*2\r\n$-1\r\n"])
    def test_one_that_ends_early(self, pool, text):
        given = pool([text])
        with pytest.raises(redis.ConnectionError, match="closed by the server"):
            redis_direct.ask(given, [get(*targets(5))])
        assert (given.disconnected, given.released) == (1, 1)

    def test_one_that_does_not_come(self, pool):
        given = pool([b"$5\r\nabc"], gone=False, seconds=0.05)
        with pytest.raises(redis.TimeoutError):
            redis_direct.ask(given, [get(*targets(5))])
        assert (given.disconnected, given.released) == (1, 1)

    @pytest.mark.parametrize("begin", [b"$4000\r\n", b"+", b"*1\r\n$4000\r\n"])
    def test_one_that_drips(self, pool, begin):
        """Each recv is soon over; all of them together are not."""
        given = pool([begin], gone=False)
        done = threading.Event()

        def drip(sock: socket.socket) -> None:
            while not done.wait(0.01):
                sock.sendall(b"x")

        given.then = drip
        started = time.monotonic()
        try:
            with limited(0.3), pytest.raises(redis.TimeoutError):
                redis_direct.ask(given, [get()])
        finally:
            done.set()
        assert time.monotonic() - started < 5
        assert (given.disconnected, given.released) == (1, 1)


@pytest.mark.needs("redis")
def test_a_server(tmp_path):
    with Redis(tmp_path, free_ports(1)[0]) as server:
        pool = pool_class().from_url(server.url)
        client = redis.Redis(connection_pool=pool)
        client.mset({"a": LONG, "b": b"", "c": b"short"})
        into = targets(3000, 3000, 3000, 3000)
        for _ in range(3):  # by one connection, that is as it was
            command = Command("a", ("MGET", "a", "b", "none", "c"), into, len(LONG))
            found = redis_direct.ask(client, [command])
            assert found == [[Filled(LONG[:HEAD]), b"", None, b"short"]]
            assert bytes(into[0]) == LONG[HEAD:]
            wrong = redis_direct.ask(client, [Command("a", ("LPOP", "a")), get()])
            assert re.match("Operation against a key", str(wrong[0]).removeprefix("WRONGTYPE "))
            assert wrong[1] == LONG
            assert client.get("c") == b"short"
        assert pool._created_connections == 1
        pool.disconnect()

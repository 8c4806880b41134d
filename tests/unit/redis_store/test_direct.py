"""stores/redis_direct.py: answers, however they arrive, and what is not one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pagemove.stores import redis_direct
from pagemove.stores.redis_direct import FILLED, Unusual
from support.servers import Redis, free_ports

redis = pytest.importorskip("redis")

LONG = np.random.default_rng(4).bytes(3000)


class Pool:
    """Has one connection, whose other end is in the hands of a test."""

    def __init__(self, sock: object) -> None:
        self.connection_pool = self
        self._sock = sock
        self.sent = b""
        self.disconnected = self.released = 0

    def get_connection(self) -> Pool:
        return self

    def release(self, connection: Pool) -> None:
        assert connection is self
        self.released += 1

    def pack_commands(self, commands: list[tuple[bytes, ...]]) -> list[bytes]:
        return [b" ".join(words) for words in commands]

    def send_packed_command(self, packed: list[bytes]) -> None:
        self.sent = b"".join(packed)

    def disconnect(self) -> None:
        self.disconnected += 1


@pytest.fixture
def pool() -> Iterator[Callable[..., Pool]]:
    """Make one whose server answers in pieces, and then is gone, if it is to be."""
    with contextlib.ExitStack() as stack:

        def make(pieces: list[bytes], *, gone: bool = True) -> Pool:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            ours.settimeout(10 if gone else 0.05)
            thread = threading.Thread(target=_answer, args=(theirs, pieces, gone))
            thread.start()
            stack.callback(thread.join)
            return Pool(ours)

        yield make


def _answer(theirs: socket.socket, pieces: list[bytes], gone: bool) -> None:
    for piece in pieces:
        theirs.sendall(piece)
    if gone:
        theirs.shutdown(socket.SHUT_WR)


def targets(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for length in lengths]


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


class TestAnswers:
    TEXT = b"*4\r\n" + bulk(LONG) + b"$-1\r\n" + bulk(b"") + bulk(b"four") + b":17\r\n" + bulk(LONG)

    def check(self, pool: Pool) -> None:
        into = [*targets(3000, 10, 5, 5), *targets(3000)]
        found = redis_direct.ask(pool, [(b"MGET", b"a"), (b"LLEN", b"b"), (b"GET", b"c")], into)
        assert found == [[FILLED, None, b"", b"four"], 17, FILLED]
        assert bytes(into[0]) == bytes(into[-1]) == LONG
        assert pool.sent == b"MGET aLLEN bGET c"
        assert (pool.disconnected, pool.released) == (0, 1)

    def test_at_once(self, pool):
        self.check(pool([self.TEXT]))

    @pytest.mark.parametrize("length", [1, 2, 3, 7, 100, 511, 512, 513, 2999])
    def test_in_pieces(self, pool, length):
        starts = range(0, len(self.TEXT), length)
        self.check(pool([self.TEXT[start : start + length] for start in starts]))

    def test_cut_anywhere(self, pool):
        text = bulk(b"0123456789") + bulk(b"ab")
        for cut in range(len(text)):
            into = targets(10, 2)
            given = pool([text[:cut], text[cut:]])
            assert redis_direct.ask(given, [(b"GET",), (b"GET",)], into) == [FILLED, FILLED]
            assert [bytes(each) for each in into] == [b"0123456789", b"ab"]

    def test_without_targets(self, pool):
        given = pool([bulk(b"abc") * 2])
        assert redis_direct.ask(given, [(b"GET",), (b"GET",)], [None]) == [b"abc", b"abc"]


class TestNoAnswer:
    @pytest.mark.parametrize("text", [b"-MOVED 1 host:1\r\n", b"+OK\r\n", b">1\r\n", b"x" * 400])
    def test_what_redis_py_has_to_understand(self, pool, text):
        given = pool([text])
        with pytest.raises(Unusual):
            redis_direct.ask(given, [(b"GET",)], targets(5))
        assert (given.disconnected, given.released) == (1, 1)

    @pytest.mark.parametrize("text", [b"", b"$5\r", b"$5\r\nabc", b"$5\r\nabcde", b"*2\r\n$-1\r\n"])
    def test_one_that_ends_early(self, pool, text):
        given = pool([text])
        with pytest.raises(redis.ConnectionError, match="closed by the server"):
            redis_direct.ask(given, [(b"GET",)], targets(5))
        assert (given.disconnected, given.released) == (1, 1)

    def test_one_that_does_not_come(self, pool):
        given = pool([b"$5\r\nabc"], gone=False)
        with pytest.raises(redis.TimeoutError):
            redis_direct.ask(given, [(b"GET",)], targets(5))
        assert (given.disconnected, given.released) == (1, 1)

    def test_a_connection_of_another_make(self):
        given = Pool(None)
        with pytest.raises(Unusual):
            redis_direct.ask(given, [(b"GET",)], targets(5))
        assert given.sent == b""


@pytest.mark.needs("redis")
def test_a_server(tmp_path):
    with Redis(tmp_path, free_ports(1)[0]) as server, redis.Redis.from_url(server.url) as client:
        client.mset({"a": LONG, "b": b"", "c": b"short"})
        into = targets(3000, 3000, 3000, 3000)
        for _ in range(3):  # by one connection, that is as it was
            found = redis_direct.ask(client, [("MGET", "a", "b", "none", "c")], into)
            assert found == [[FILLED, b"", None, b"short"]]
            assert bytes(into[0]) == LONG
            with pytest.raises(Unusual):
                redis_direct.ask(client, [("LPOP", "a")], into)
            assert client.get("c") == b"short"

"""A server that answers anything: an error in time, within memory, and no secret in it."""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest

from pagemove import StoreError
from pagemove.paging.sources import Source
from pagemove.stores import RedisStore
from pagemove.stores.redis_bounds import limited, pool_class
from pagemove.stores.redis_client import code_of
from pagemove.stores.redis_secrets import check_userinfo, secrets_of, shown

redis = pytest.importorskip("redis")

K = 1024


def bulk(*values: object) -> bytes:
    texts = [str(value).encode() for value in values]
    return b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def slots(*entries: tuple[int, int, int]) -> bytes:
    """Make the answer to CLUSTER SLOTS of first and last slots and ports."""
    return array(
        *(
            array(
                b":%d\r\n" % first, b":%d\r\n" % last, array(bulk("127.0.0.1"), b":%d\r\n" % port)
            )
            for first, last, port in entries
        )
    )


class Server:
    """Answers each command as a test says; the rest as a server does that has one array."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.answers: dict[str, bytes | Callable[[socket.socket], object]] = {
            "INFO": bulk("cluster_enabled:0\r\n"),
            "HMGET": array(bulk(2, "00" * 8, 64 * K, 16 * K, 1, 1, 1)).replace(b"*1", b"*7"),
            "COMMAND": array(array(bulk("get"), b":2\r\n", array(), b":1\r\n" * 3)).replace(
                b"*4", b"*6"
            ),
            "SLOTS": slots((0, 16383, self.port)),
        }
        self.asked: list[str] = []
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError), client.makefile("rb") as file:
            while line := file.readline():
                words = [
                    file.read(int(file.readline()[1:]) + 2)[:-2].decode("latin1")
                    for _ in range(int(line[1:]))
                ]
                name = words[1] if words[0] == "CLUSTER" else words[0]
                self.asked.append(name)
                answer = self.answers.get(name, b"+OK\r\n")
                if name == "ECHO":
                    answer = bulk(words[1])
                if callable(answer):
                    answer(client)
                else:
                    client.sendall(answer)


@pytest.fixture
def fake() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


def _endless(begin: bytes, piece: bytes, seconds: float = 0) -> Callable[[Server], object]:
    """Answer so, and then with pieces forever."""

    def make(server: Server) -> Callable[[socket.socket], None]:
        def answer(client: socket.socket) -> None:
            client.sendall(begin)
            while not server.over.wait(seconds):
                client.sendall(piece)

        return answer

    return make


ANSWERS = {
    "a byte now and then": _endless(b"$1000\r\n", b"x", 0.01),
    "a line now and then": _endless(b"+", b"x", 0.01),
    "512 MiB": _endless(b"$536870912\r\n", b"x" * 100_000),
    "a line without an end": _endless(b"+", b"x" * 100_000),
    "an array without an end": _endless(b"*1000000000\r\n", b":1\r\n" * 10_000),
    "arrays in arrays": _endless(b"", b"*1\r\n" * 10_000),
    "an unknown type": _endless(b"?1\r\n", b"", 10),
    "a map": _endless(b"%1\r\n:1\r\n:1\r\n", b"", 10),
    "not a number": _endless(b"$12x\r\n", b"", 10),
    "another protocol": _endless(b"HTTP/1.1 200 OK\r\n\r\n", b"", 10),
    "nothing": _endless(b"", b"", 10),
}


@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.parametrize("where", ["INFO", "AUTH", "HMGET", "MGET", "SLOTS", "COMMAND"])
def test_every_answer_has_an_end(fake, where, what):
    opened, store = contextlib.ExitStack(), None
    url = f"redis://user:pass@127.0.0.1:{fake.port}"
    if where in ("SLOTS", "COMMAND"):
        fake.answers["INFO"] = bulk("cluster_enabled:1\r\n")
    if where == "MGET":
        store = opened.enter_context(RedisStore(url, "a"))
        store._client._timeout = 0.2  # from now on: what is to be there in time is the error
    fake.answers[where] = ANSWERS[what](fake)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with opened, pytest.raises(StoreError) as caught:
        (store if where == "MGET" else RedisStore(url, "a", timeout=0.2)).read_into(
            0, bytearray(64 * K)
        )
    assert caught.value.errno in (errno.ETIMEDOUT, errno.EBADMSG)
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("what", ["512 MiB", "a line without an end", "an array without an end"])
def test_redis_py_takes_in_no_more_than_there_can_be(fake, what):
    """Which is known before the time is over."""
    fake.answers["INFO"] = ANSWERS[what](fake)
    pool = pool_class().from_url(f"redis://127.0.0.1:{fake.port}")
    with limited(20), pytest.raises(redis.ConnectionError, match="more than 1048576 bytes"):
        redis.Redis(connection_pool=pool).info()
    pool.disconnect()


@pytest.mark.parametrize(
    "answer",
    [
        slots((0, 10**12, 1)),
        slots((-5, 3, 1)),
        slots(*((n, n, 10_000 + n) for n in range(5000))),
        array(array(b":0\r\n", b":16383\r\n", bulk("127.0.0.1"))),
        array(array(b":0\r\n", b":16383\r\n")),
    ],
)
def test_impossible_clusters(fake, answer):
    fake.answers |= {"INFO": bulk("cluster_enabled:1\r\n"), "SLOTS": answer}
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(StoreError, match="no cluster that there can be"):
        # Time enough to look at thousands of ranges on a busy machine.
        RedisStore(f"redis://127.0.0.1:{fake.port}", "a", timeout=8)
    assert time.monotonic() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("word", ["MOVED", "ASK"])
def test_endless_redirects(fake, word):
    fake.answers["INFO"] = bulk("cluster_enabled:1\r\n")
    with RedisStore(f"redis://127.0.0.1:{fake.port}", "a") as store:
        store._client._timeout = 0.5
        fake.answers["MGET"] = f"-{word} 1 127.0.0.1:{fake.port}\r\n".encode()
        fake.asked.clear()
        started = time.monotonic()
        with pytest.raises(StoreError, match="cannot read"):
            store.read_into(0, bytearray(64 * K))
        assert time.monotonic() - started < 10
        assert fake.asked.count("MGET") < 100


@pytest.mark.parametrize(
    "values",
    [
        array(*[bulk("short")] * 4),
        array(*[bulk("x" * 16 * K)] * 4),
        array(*[bulk("x" * (16 * K + 32))] * 4),
        array(*[bulk("x" * (16 * K + 33))] * 4),
        array(*[bulk("")] * 4),
        array(*[b":0\r\n"] * 4),
        array(*[b"*0\r\n"] * 4),
        array(*[b"$-1\r\n"] * 3),
        b"*0\r\n",
        b"*-1\r\n",
        b"$-1\r\n",
        b"+OK\r\n",
        b":0\r\n",
    ],
)
def test_what_is_no_block_never_becomes_one(fake, values):
    with RedisStore(f"redis://127.0.0.1:{fake.port}", "a") as store:
        store._client._timeout = 2  # some are asked for again until then
        fake.answers["MGET"] = values
        with pytest.raises(StoreError) as caught:
            store.read_into(0, bytearray(64 * K))
        assert caught.value.errno in (errno.EIO, errno.EBADMSG)


class TestSecrets:
    URLS = (
        "redis://user:pa%40ss@127.0.0.1:{}/0",
        "redis://user:pa@ss@127.0.0.1:{}/0",
        "redis://:pa@ss@127.0.0.1:{}/0",
        "redis://127.0.0.1:{}/0?username=user&password=pa%40ss",
        "redis://127.0.0.1:{}?password=pa@ss",
    )

    @pytest.mark.parametrize("url", URLS)
    def test_a_server_that_quotes_what_it_was_sent(self, fake, url, caplog):
        caplog.set_level(logging.DEBUG)
        text = "-ERR unknown command 'AUTH', with args beginning with: 'user' 'pa@ss' \r\n"
        fake.answers["AUTH"] = text.encode()
        with pytest.raises(StoreError) as caught:
            RedisStore(url.format(fake.port), "a", timeout=0.3)
        shown_text = "".join(traceback.format_exception(caught.value)) + caplog.text
        for word in ("pa@ss", "pa%40ss", *(["'user'"] if "user" in url else [])):
            assert word not in shown_text
        assert "unknown command 'AUTH'" in str(caught.value)
        # Where an @ is left over, nothing of the URL can be told from a password.
        assert (str(fake.port) in str(caught.value)) == ("=pa@ss" not in url)

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://u:p@host:1/2", "redis://host:1/2"),
            ("valkey://u:p@[::1]:1", "valkey://[::1]:1"),
            ("rediss://host?db=3&password=hidden&ssl_password=hidden", "rediss://host?db=3"),
            ("redis://host/0?db=hidden", "redis://host/0"),
            ("unix://u@/run/redis?password=hidden", "unix:///run/redis"),
            ("redis://u:p/hidden@host:1", "redis://..."),
            ("redis://u:12/hidden@host:1", "redis://..."),
            ("redis://:12#hidden@host", "redis://..."),
            ("redis://:12?hidden@host", "redis://..."),
            ("redis://host:hidden", "redis://..."),
            ("hidden", "..."),
        ],
    )
    def test_urls(self, url, expected):
        assert shown(url) == expected

    @pytest.mark.parametrize("mark", "/?#")
    @pytest.mark.parametrize("user", ["", "u", "12"])
    @pytest.mark.parametrize("begin", ["pas", "12", ""])
    @pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey"])
    def test_a_password_that_has_to_be_encoded(self, mark, user, begin, scheme):
        """None of it is a host, a port or the name of an array, and shown as that."""
        url = f"{scheme}://{user}:{begin}{mark}hidden@127.0.0.1:1/0"
        for store in (lambda: RedisStore(url, "a"), Source(f"{url}#name").open):
            with pytest.raises(ValueError, match=f"{scheme}://.* as %2F %3F %23") as caught:
                store()
            assert "hidden" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("mark", "/?#")
    @pytest.mark.parametrize("scheme", ["redis", "valkeys"])
    def test_a_password_that_has_an_at_before(self, mark, scheme):
        """What is before the mark looks like a user and a host, of another server."""
        url = f"{scheme}://u:pa@other{mark}hidden@127.0.0.1:1/0"
        for store in (lambda: RedisStore(url, "a"), Source(f"{url}#name").open):
            with pytest.raises(ValueError, match=f"{scheme}://.* as %2F %3F %23") as caught:
                store()
            assert "hidden" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        "url",
        [
            "redis://host/0#a@b",
            "redis://host:1/0#a@b",
            "redis://[::1]:1/0#a@b",
            "redis://[::1]#a@b",
            "redis://u:p%2F@host/0#a@b",
            "redis://u:p@ss@host/0",
            "redis://host?password=p@ss",
            "unix:///run/a@b?db=1",
            "unix://u:p@/run/a@b",
            "unix://u@/run/a@b",
        ],
    )
    def test_an_at_that_is_in_its_place(self, url):
        check_userinfo(url, is_named=True)

    def test_a_socket_with_a_password_that_has_to_be_encoded(self):
        with pytest.raises(ValueError, match=r"unix://\.\.\. has .* as %2F %3F %23"):
            check_userinfo("unix://u:p/word@/run/redis")

    @pytest.mark.parametrize("url", ["http://u:word@host", "redis://h:word"])
    def test_what_is_no_url(self, url):
        with pytest.raises(ValueError, match="percent-encoded") as caught:
            RedisStore(url, "a")
        assert "word@" not in "".join(traceback.format_exception(caught.value))

    def test_options(self):
        options = {"password": "pa@ss", "ssl_password": "more", "username": "somebody", "db": 3}
        assert secrets_of("redis://host", options) == ["somebody", "pa@ss", "more"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (socket.gaierror(-2, "Name or service not known"), errno.EHOSTUNREACH),
        (ssl.SSLError(1, "wrong version"), errno.EPROTO),
        (OSError(errno.ENETUNREACH, "no"), errno.ENETUNREACH),
        (OSError("text"), errno.EIO),
        (OSError(-5, "negative"), errno.EIO),
        (TimeoutError("timed out"), errno.ETIMEDOUT),
        (redis.ConnectionError("cut"), errno.ECONNRESET),
        (redis.TimeoutError("late"), errno.ETIMEDOUT),
        (redis.ResponseError("no"), errno.EIO),
        (redis.InvalidResponse("what"), errno.EBADMSG),
        (redis.exceptions.ReadOnlyError("no"), errno.EROFS),
        (redis.exceptions.OutOfMemoryError("no"), errno.ENOSPC),
        (redis.exceptions.NoPermissionError("no"), errno.EACCES),
    ],
)
def test_errnos_are_those_of_errors(error, code):
    assert code_of(error) == code
    wrapped = redis.ConnectionError("wrapped")
    wrapped.__cause__ = error
    assert code_of(wrapped) == code


def test_a_name_that_is_not_known():
    with pytest.raises(StoreError) as caught:
        RedisStore("redis://no-such-host.invalid", "a", timeout=0.2)
    assert caught.value.errno == errno.EHOSTUNREACH

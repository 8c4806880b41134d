"""What a network may do to requests for Redis: hold them back, send them twice, out of order."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator

#: What becomes of a request: it passes; is held back, with all that follows on its connection,
#: until it is released, on another one; passes, and is kept to be released too; passes twice.
PASS, HOLD, KEEP, TWICE = "pass", "hold", "keep", "twice"

Rule = Callable[[list[bytes]], str]


class RedisProxy:
    """Stands between clients and one server, and does to each request what a rule says.

    Attributes
    ----------
    rule : callable
        Takes the words of a request.
    seen : list of list of bytes
        The words of all requests.
    """

    def __init__(self, port: int, *, seed: int = 0) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.rule: Rule = lambda _: PASS
        self.seen: list[list[bytes]] = []
        self._held: list[bytes] = []
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[RedisProxy]:
        self._start(self._accept)
        try:
            yield self
        finally:
            for sock in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    @property
    def held(self) -> int:
        """How many requests are held back, or kept."""
        with self._changed:
            return len(self._held)

    def wait_held(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._held) >= count, 30)

    def release(self) -> int:
        """Let what was held back arrive, in any order, and be carried out; return how many."""
        with self._changed:
            held, self._held = self._held, []
        self._random.shuffle(held)
        for request in held:
            with socket.create_connection(("127.0.0.1", self._port), 30) as server:
                server.sendall(request)
                server.shutdown(socket.SHUT_WR)
                # The server closes the connection when it has answered.
                while server.recv(1 << 16):
                    pass
        return len(held)

    def _start(self, call: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=call, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                self._start(self._forward_requests, client, server)
                self._start(self._forward_answers, server, client)

    def _forward_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as file:
            while (request := _request(file)) is not None:
                raw, words = request
                self.seen.append(words)
                fate = self.rule(words)
                if fate in (HOLD, KEEP):
                    with self._changed:
                        self._held.append(raw)
                        self._changed.notify_all()
                if fate == HOLD:
                    return
                server.sendall(2 * raw if fate == TWICE else raw)
            server.shutdown(socket.SHUT_WR)

    def _forward_answers(self, server: socket.socket, client: socket.socket) -> None:
        """Pass on what the server answers, in two pieces cut anywhere."""
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := server.recv(1 << 16):
                cut = self._random.randrange(len(data))
                client.sendall(data[:cut])
                client.sendall(data[cut:])
            client.shutdown(socket.SHUT_WR)


def _request(file: object) -> tuple[bytes, list[bytes]] | None:
    """Read a request; return it as it came, and its words."""
    lines = [file.readline()]
    if not lines[0]:
        return None
    words = []
    for _ in range(int(lines[0][1:])):
        lines.append(file.readline())
        lines.append(file.read(int(lines[-1][1:]) + 2))
        words.append(lines[-1][:-2])
    return b"".join(lines), words


def is_script(words: list[bytes], script: str) -> bool:
    return words[0] == b"EVAL" and words[1] == script.encode()

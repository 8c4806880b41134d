"""A relay in front of a server, which counts what goes through it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

_REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST) /\S* HTTP/1\.1\r\n")
_PIECE = 1 << 16


class Relay:
    """Relays connections to a port of loopback.

    Attributes
    ----------
    asked : list of str
        The request lines of HTTP, each with a ``Range`` if it has one.
    sent : int
        Bytes that the server sent.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        self.sent = 0
        self._counting = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def forget(self) -> None:
        """Count from nothing."""
        with self._counting:
            self.asked, self.sent = [], 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Relay]:
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            for sock in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in self._threads:
                thread.join()
            for sock in (self._listener, *self._sockets):
                sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            self._sockets += client, server
            for one, other, counted in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._relay, args=(one, other, counted))
                thread.start()
                self._threads.append(thread)

    def _relay(self, one: socket.socket, other: socket.socket, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(_PIECE):
                self._count(data, from_server)
                other.sendall(data)
        for sock in (one, other):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _count(self, data: bytes, from_server: bool) -> None:
        with self._counting:
            if from_server:
                self.sent += len(data)
            else:
                self.asked += [line.decode().strip() for line in _REQUEST.findall(data)]

"""A network between two processes: it delays, splits, loses connections, and repeats old ones."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import threading
import time
from pathlib import Path


class Network:
    """Passes bytes on to a port or Unix socket, both ways, as it is told to; descriptors too.

    Attributes
    ----------
    port : int
        To connect to; or with a Unix socket, `path`.
    shares : list of int
        Of the next connections: how many bytes, in either direction, until they are lost. Those
        that none is left for last.
    longest_delay : float
        Seconds that a piece may be on its way.
    losses : int
        How many connections were lost.
    """

    def __init__(self, to: int | Path, seed: int = 0) -> None:
        self._chance = random.Random(seed)
        self._to: tuple[str, int] | str
        if isinstance(to, int):
            self._to, self._family = ("127.0.0.1", to), socket.AF_INET
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
        else:
            self._to, self._family = str(to), socket.AF_UNIX
            self.path = to.with_name(f"{to.name}.{seed}.{secrets.token_hex(4)}")
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self.path))
            self._listener.listen()
        self.shares: list[int] = []
        self.longest_delay = 0.0
        self.losses = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._said: list[bytearray] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def lose(self) -> None:
        """Lose all connections that there are."""
        with self._lock:
            self.losses += len(self._open) // 2
            for each in self._open:
                _end(each)

    def repeat(self, number: int) -> int:
        """Say again, on a new connection, all that was said on an old one; return bytes heard."""
        with self._lock:
            said = bytes(self._said[number % len(self._said)]) if self._said else b""
        heard = 0
        with socket.socket(self._family) as line:
            line.settimeout(20)
            with contextlib.suppress(OSError):
                line.connect(self._to)
                line.sendall(said)
                line.shutdown(socket.SHUT_WR)
                while data := line.recv(1 << 20):
                    heard += len(data)
        return heard

    def close(self) -> None:
        """Lose all, and take no more."""
        _end(self._listener)
        self._listener.close()
        self._threads.pop(0).join()
        self.lose()
        for each in self._threads:
            each.join()

    def _start(self, act: object, *args: object) -> None:
        thread = threading.Thread(target=act, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(self._family)
                said = bytearray()
                with self._lock:
                    left = [self.shares.pop(0) if self.shares else 1 << 60]
                    self._open |= {near, far}
                    self._said.append(said)
                try:
                    far.connect(self._to)
                except OSError:
                    left = [0]
                both = threading.Barrier(2)
                self._start(self._pass, near, far, left, said, both)
                self._start(self._pass, far, near, left, None, both)

    def _pass(
        self,
        source: socket.socket,
        sink: socket.socket,
        left: list[int],
        said: bytearray | None,
        both: threading.Barrier,
    ) -> None:
        with contextlib.suppress(OSError):
            while left[0] > 0:
                data, passed = _received(source, self._chance.choice((1, 40, 70_000)))
                if not data:
                    break
                if self.longest_delay:
                    time.sleep(self.longest_delay * self._chance.random())
                with self._lock:
                    some = data[: max(left[0], 0)]
                    left[0] -= len(data)
                    self.losses += left[0] <= 0 < left[0] + len(data)
                _send(sink, some, passed)
                if said is not None and len(said) < 1 << 20:
                    said += some
        _end(source)
        _end(sink)
        # Closed when neither thread uses it.
        both.wait()
        with self._lock:
            self._open.discard(source)
        source.close()


def _received(source: socket.socket, most: int) -> tuple[bytes, list[int]]:
    if source.family != socket.AF_UNIX:
        return source.recv(most), []
    data, passed, _, _ = socket.recv_fds(source, most, 1)
    return data, passed


def _send(sink: socket.socket, data: bytes, passed: list[int]) -> None:
    try:
        if passed and data:
            data = data[socket.send_fds(sink, [data], passed) :]
    finally:
        for each in passed:
            os.close(each)
    sink.sendall(data)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)

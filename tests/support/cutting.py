"""A network that breaks: connections end after so many bytes, in whatever they are saying."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class CuttingProxy:
    """Passes bytes on to a port, in pieces, and cuts each connection after its share of them.

    Attributes
    ----------
    port : int
        To connect to.
    cuts : int
        How many connections were cut.
    """

    def __init__(self, port: int, shares: Iterator[int]) -> None:
        self._to, self._shares = port, shares
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                left = [next(self._shares)]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(*pair, left), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(30_000):
                some = data[: max(left[0], 0)]
                left[0] -= len(data)
                # Split where it hurts: no header arrives as a whole.
                sink.sendall(some[:5])
                sink.sendall(some[5:])
                if left[0] <= 0:
                    self.cuts += 1
                    break
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()

"""TLS for code that runs without the interpreter: bytes of a socket, carried over a connection.

The code in C that hands arrays over reads and writes a socket of this process, and a thread here
carries its bytes to the TLS connection and back. So it has to be a process in which no thread holds
the interpreter while it waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable

from pagemove.stores.descriptors import tell_in_child
from pagemove.stores.wire import PEER

_PIECE = 1 << 17
_RETRIES = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def carry(far: ssl.SSLSocket, near: socket.socket) -> None:
    """Carry bytes both ways, until either side closes."""
    far.setblocking(False)
    near.setblocking(False)
    pending: dict[socket.socket, memoryview] = {far: memoryview(b""), near: memoryview(b"")}
    while True:
        wanted = {far: 0, near: 0}
        moved = False
        for source, sink in ((near, far), (far, near)):
            try:
                if not pending[sink]:
                    pending[sink] = memoryview(source.recv(_PIECE))
                    if not pending[sink]:
                        return
                    moved = True
            except _RETRIES as error:
                # TLS may have to write before it can read on.
                wanted[source] |= _events(error, select.POLLIN)
            try:
                if pending[sink]:
                    pending[sink] = pending[sink][sink.send(pending[sink]) :]
                    moved = True
            except _RETRIES as error:
                wanted[sink] |= _events(error, select.POLLOUT)
        if not moved:
            poll = select.poll()
            for sock, events in wanted.items():
                if events:
                    poll.register(sock, events)
            poll.poll()


def _events(error: OSError, otherwise: int) -> int:
    if isinstance(error, ssl.SSLWantReadError):
        return select.POLLIN
    return select.POLLOUT if isinstance(error, ssl.SSLWantWriteError) else otherwise


def carried(far: ssl.SSLSocket) -> socket.socket:
    """Return a socket that stands for a connection, until either of them is closed."""
    near, ours = socket.socketpair()

    def run() -> None:
        with ours, contextlib.suppress(OSError, ValueError):
            carry(far, ours)

    threading.Thread(target=run, name="pagemove-tls", daemon=True).start()
    return near


class Tunnel:
    """An address within this process that leads to another by TLS: each connection to one there.

    Attributes
    ----------
    address : bytes
        Of a Unix socket, without a name in the file system.
    """

    def __init__(self, connect: Callable[[], ssl.SSLSocket]) -> None:
        self._connect = connect
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("")
        self._listener.listen()
        self.address: bytes = self._listener.getsockname()
        tell_in_child(self)
        threading.Thread(target=self._run, name="pagemove-tls", daemon=True).start()

    def close(self) -> None:
        """Take no more connections. Twice is fine."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                # Anybody of this machine can find it.
                if _process_of(near) != os.getpid():
                    near.close()
                    continue
                threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError, ValueError), self._connect() as far:
            carry(far, near)

    def _in_child(self) -> None:
        self._listener.close()


def _process_of(sock: socket.socket) -> int:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return int(PEER.unpack(data)[0])

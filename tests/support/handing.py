"""Arrays that are handed over, and who takes them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove.stores import wire
from pagemove.stores.handed import HandedStore, Offer, describe
from support.slowness import patience

WORDS = 1 << 18
HERE = ("127.0.0.1", 0)
Words = npt.NDArray[np.int64]


def made(tmp_path: Path) -> Words:
    array = pagemove.create_array(tmp_path / "it", WORDS, np.int64, resident_limit="1MiB")
    array[:] = np.arange(1, WORDS + 1)
    return array


def until(condition: Any, seconds: float = 30.0) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + patience(seconds)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def all_of(store: HandedStore) -> Words:
    """Read all of a store, until it can be read."""
    found = np.zeros(store.nbytes // 8, np.int64)
    view = memoryview(found).cast("B")
    for at in range(0, len(view), 65536):
        for attempt in itertools.count():
            try:
                store.read_into(at, view[at : at + 65536])
            except pagemove.StoreError:
                assert attempt < 200
                time.sleep(0.01)
            else:
                break
    return found


def led_to(store: HandedStore, port: int) -> None:
    """Have a store take its array by way of another port of this machine."""
    family, _, rest = store._address[:2], store._address[2:4], store._address[4:]
    store._address = family + struct.pack("!H", port) + rest


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for 127.0.0.1; return a giver's context, and what takers are to trust."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, certificate = folder / "key", folder / "certificate"
    files = ("-keyout", key, "-out", certificate)
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *names]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


OFFER = Offer("key", np.dtype("i8"), (WORDS,), False, 8 * WORDS, 65536)


class Liar:
    """A giver that says what it is told to, and answers all else as `answer` does."""

    def __init__(
        self,
        listener: socket.socket,
        offer: Offer,
        answer: Callable[[wire.Line], None] = lambda line: None,
        secret: bytes | None = None,
    ) -> None:
        self._listener, self._offer, self._answer = listener, offer, answer
        self._secret = secret
        self._thread = threading.Thread(target=self._run)
        self._lines: list[tuple[wire.Line, threading.Thread]] = []

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line = wire.Line(self._listener.accept()[0])
                thread = threading.Thread(target=self._meet, args=(line,))
                self._lines.append((line, thread))
                thread.start()

    def _meet(self, line: wire.Line) -> None:
        with line, contextlib.suppress(OSError):
            greeted = wire.Greeted(line, self._secret)
            if greeted.want["do"] == "describe":
                greeted.reply(0, describe(self._offer))
            else:
                greeted.reply(0, "")
                self._answer(line)

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for line, thread in self._lines:
            line.end()
            thread.join()


def url_of(listener: socket.socket) -> str:
    """Return what a taker of a `Liar` opens."""
    return f"pagemove://127.0.0.1:{listener.getsockname()[1]}"

"""Each block of an array that is handed over crosses once, and what is touched does not wait."""

from __future__ import annotations

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.paging import given as giving
from pagemove.stores import handed, wire
from pagemove.stores.handed import HandedStore
from support.handing import HERE, OFFER, Liar, all_of, until, url_of
from support.network import Network

NBYTES = 32 << 20
UNIT = 65536
UNITS = OFFER.nbytes // OFFER.unit


def given(tmp_path: Path) -> np.ndarray:
    array = pagemove.create_array(tmp_path / "it", NBYTES // 8, np.int64, resident_limit="8MiB")
    array[:] = np.arange(1, NBYTES // 8 + 1)
    return array


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_reading_on_beside_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    # However busy the machine is, nothing is overdue.
    monkeypatch.setattr(handed, "_LATE_SECONDS", 100.0)
    numbers = given(tmp_path)
    with (
        pagemove.serve(numbers, HERE if where == "tcp" else tmp_path / "socket") as served,
        HandedStore(served.url, store_timeout=100) as store,
    ):

        def read_part(part: int) -> np.ndarray:
            found = np.empty(NBYTES // 4 // 8, np.int64)
            view = memoryview(found).cast("B")
            for at in range(0, len(view), 3 * UNIT // 2):
                store.read_into(part * len(view) + at, view[at : at + 3 * UNIT // 2])
            return found

        with ThreadPoolExecutor(4) as pool:
            found = np.concatenate(list(pool.map(read_part, range(4))))
        served.wait(100)
        assert served.stats()["sent_bytes"] == NBYTES
    assert np.array_equal(found, np.arange(1, NBYTES // 8 + 1))


class _Forgetful:
    """A giver that answers touches, and at first nothing that is asked for in the background.

    Four units are asked for before the first has come.
    """

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.asked = threading.Event()

    def __call__(self, line: wire.Line) -> None:
        line.sock.settimeout(30)
        in_background = False
        while True:
            kind, first, count = wire.REQUEST.unpack(line.receive(wire.REQUEST.size))
            if kind == wire.HAVE:
                in_background = True
                line.receive(count)
                line.send(wire.ANSWER.pack(wire.HAVE, 0, UNITS, 0, 0))
            elif kind == wire.ORDER:
                line.send(wire.ANSWER.pack(wire.ORDER, 0, 1, 0, 16), struct.pack("<QQ", 0, UNITS))
            elif kind == wire.READ:
                byte = b"b" if in_background else b"t"
                if in_background and not self.asked.is_set():
                    line.sock.recv(3 * wire.REQUEST.size, socket.MSG_PEEK | socket.MSG_WAITALL)
                    self.asked.set()
                    assert self.goes_on.wait(30)
                nbytes = min(count * UNIT, OFFER.nbytes - first * UNIT)
                line.send(wire.ANSWER.pack(wire.READ, 0, first, count, nbytes), byte * nbytes)
                line.send(wire.VERDICT.pack(0, 0))


def test_what_is_overdue_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed, "_LATE_SECONDS", 0.2)
    giver, listener = _Forgetful(), socket.create_server(HERE)
    with (
        Liar(listener, OFFER, giver),
        HandedStore(url_of(listener), backing="memory", store_timeout=30) as store,
    ):
        found = bytearray(UNIT)
        begin = time.monotonic()
        store.read_into(20 * UNIT, found)
        assert giver.asked.wait(30)
        store.read_into(2 * UNIT, found)
        assert time.monotonic() - begin >= 0.2
        assert found == b"t" * UNIT
        # Written over, whole and in part: what comes for it later comes to nothing.
        store.write(1 * UNIT, b"w" * UNIT)
        store.write(2 * UNIT, b"w" * 100)
        giver.goes_on.set()
        until(lambda: store.stats()["missing_bytes"] == 0)
        for unit, wanted in ((0, b"b"), (1, b"w"), (2, b"t"), (3, b"b"), (20, b"t")):
            store.read_into(unit * UNIT, found)
            assert found[100:] == wanted * (UNIT - 100)
        assert found[:100] == b"t" * 100


def test_what_was_asked_for_on_a_connection_that_broke_comes(tmp_path: Path) -> None:
    numbers = given(tmp_path)
    with pagemove.serve(numbers, HERE) as served:
        network = Network(wire.place_of(served.url).port)
        with HandedStore(f"pagemove://127.0.0.1:{network.port}") as store:
            store.read_into(0, bytearray(8))
            for _ in range(5):
                network.lose()
                time.sleep(0.01)
            # Nobody touches it.
            served.wait(100)
            assert np.array_equal(all_of(store), np.arange(1, NBYTES // 8 + 1))
            assert served.stats()["sent_bytes"] < 2 * NBYTES
        network.close()


def test_what_is_in_use_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last read first, then what is in memory, then the rest; however many pages are looked at."""
    numbers = given(tmp_path)
    region = pagemove.region_of(numbers)
    with pagemove.serve(numbers, HERE) as served:
        region.evict()
        numbers[40 * UNIT // 8], numbers[300 * UNIT // 8], numbers[7 * UNIT // 8]
        orders = []
        for size in (1 << 30, 1 << 20):
            monkeypatch.setattr(giving, "_LOOKED_AT", size)
            orders.append(served._given._order())
        assert np.array_equal(*orders)
        units = [
            unit for first, count in orders[0].tolist() for unit in range(first, first + count)
        ]
    assert sorted(units) == list(range(NBYTES // UNIT))
    # A block of a file is several units.
    together = region.block_size // UNIT or 1
    assert [unit // together for unit in units[: 3 * together : together]] == [
        unit // together for unit in (7, 300, 40)
    ]
